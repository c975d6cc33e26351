//! `cargo xtask`: everything that is done with this repository, one module a command.

mod accuracy;
mod attention;
mod bench;
mod build;
mod check;
mod demo;
mod mutants;
mod progress;
mod tensors;
mod test;
mod tools;
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
    /// Assemble the PTX for every architecture; fail on spills, stack frames and missing IMMA
    Check(check::Args),
    /// Q, K, V from a safetensors file through INT8 attention into another
    Attention(attention::Args),
    /// The job on real activations, both schemes
    Demo(demo::Args),
    /// Speed on this machine's GPU, beside float16
    Bench(bench::Args),
    /// One mistake at a time in the PTX: how many would the tests notice?
    Mutants(mutants::Args),
    /// Format, lints, docs, PTX, tests, stable compiler: everything
    Test(test::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Build(args) => build::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Attention(args) => attention::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Mutants(args) => mutants::run(&args),
        Command::Test(args) => test::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
