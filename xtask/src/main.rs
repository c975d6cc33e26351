//! `cargo xtask`: everything that is done with this repository, one module a command.

// first, so that all others print with its macros
#[macro_use]
mod stdout;

mod accuracy;
mod assembler;
mod attention;
mod bench;
mod build;
mod candle;
mod check;
mod demo;
mod deny;
mod machine_code;
mod mutants;
mod output;
mod package;
mod paper;
mod progress;
mod scores;
mod sweep;
mod test;
mod tools;
mod user;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "INT8 FlashAttention: build, check, run, measure, test"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile the kernels to the PTX in host/ptx
    Build(build::Args),
    /// Assemble the committed PTX into host/machine-code, from where library and package take it
    MachineCode(machine_code::Args),
    /// The packages, the library's with its machine code, and whether that keeps to its size
    Package(package::Args),
    /// Assemble the PTX for every architecture; fail on spills, stack frames and missing IMMA
    Check(check::Args),
    /// Registers, spills, shared memory, CTAs and main loops of the kernels in one table, to choose between shapes
    Sweep(sweep::Args),
    /// Q, K, V from a safetensors file through INT8 attention into another
    Attention(attention::Args),
    /// The job on real activations, both schemes
    Demo(demo::Args),
    /// Speed on this machine's GPU, beside float16
    Bench(Box<bench::Args>),
    /// The paper's two tables, time and error, measured here beside what it published
    Paper(paper::Args),
    /// One mistake at a time in the PTX: how many would the tests notice?
    Mutants(mutants::Args),
    /// Format, lints, docs, PTX, tests, stable compiler: everything
    Test(test::Args),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    // Later, rayon would panic where it cannot have them.
    let threads = int_flash_attention::reference::start_threads().map_err(anyhow::Error::from);
    let result = threads.and_then(|()| match command {
        Command::Build(args) => build::run(&args),
        Command::MachineCode(args) => machine_code::run(&args),
        Command::Package(args) => package::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Attention(args) => attention::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Paper(args) => paper::run(&args),
        Command::Mutants(args) => mutants::run(&args),
        Command::Test(args) => test::run(&args),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
