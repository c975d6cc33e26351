//! One producer and two consumer warpgroups: bulk copies, mbarriers, `wgmma` and `setmaxnreg` together; and what
//! becomes of the kernel when any one part of its synchronization is missing.

use crate::harness::mixed;
use ptx_machine::{Error, Fault, Launch, Memory, Module, RaceKind};

const PTX: &str = include_str!("../kernels/pipeline.ptx");
const TILES: usize = 5;
const DEPTH: usize = 128;
const ROWS: usize = 128;
const COLUMNS: usize = 64;
/// Sums of a thread, and one that it receives.
const WORDS: usize = 33;

/// The tiles as the kernel wants them, and as they are: `[tile][row of A, then column of B][k]`.
fn operands() -> (Vec<u8>, Vec<[u8; DEPTH]>) {
    let lines = TILES * (ROWS + COLUMNS);
    let plain: Vec<[u8; DEPTH]> = (0..lines as u32)
        .map(|line| std::array::from_fn(|k| (mixed(line)[k % 32].wrapping_mul(k as u32 * 2 + 77) >> 11) as u8))
        .collect();
    let mut image = vec![0; lines * DEPTH];
    for (line, values) in plain.iter().enumerate() {
        for (k, value) in values.iter().enumerate() {
            image[line * DEPTH + ((k / 16) ^ (line % 8)) * 16 + k % 16] = *value;
        }
    }
    (image, plain)
}

fn run(ptx: &str) -> Result<Vec<i32>, Error> {
    let module = Module::load(ptx)?.with_instruction_limit(1_000_000);
    let mut memory = Memory::new();
    let image = memory.alloc_from(&operands().0);
    let out = memory.alloc((256 * WORDS * 4) as u64, 16);
    let launch = Launch { kernel: "pipeline", grid: [1, 1, 1], block: [384, 1, 1], shared_bytes: 2 * 24576 + 32 };
    module.launch(&launch, &[image.into(), out.into(), (TILES as u32).into()], &memory)?;
    memory.read(out, 256 * WORDS)
}

#[test]
fn the_product_is_right() {
    let (_, plain) = operands();
    let sum = |row: usize, column: usize| -> i32 {
        let tile = |t: usize| {
            let tile = &plain[t * (ROWS + COLUMNS)..];
            let pairs = tile[row].iter().zip(&tile[ROWS + column]);
            pairs.map(|(a, b)| i32::from(*a) * i32::from(*b as i8)).sum::<i32>()
        };
        (0..TILES).map(tile).sum()
    };
    let place = |thread: usize, i: usize| {
        let (warp, lane) = (thread / 32, thread % 32);
        (16 * warp + lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2)
    };
    let got = run(PTX).unwrap_or_else(|error| panic!("{error}"));
    for thread in 0..256 {
        for i in 0..32 {
            let (row, column) = place(thread, i);
            assert_eq!(got[thread * WORDS + i], sum(row, column), "row {row}, column {column}");
        }
        let (row, column) = place(thread ^ 128, 0);
        assert_eq!(got[thread * WORDS + 32], sum(row, column), "what thread {thread} receives");
    }
}

/// What is found first once `from` has become `to`.
fn broken(from: &str, to: &str) -> Fault {
    assert!(PTX.contains(from), "the kernel has no `{from}`");
    match run(&PTX.replacen(from, to, 1)) {
        Err(Error::Findings(report)) => report.findings[0].fault.clone(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("`{to}` instead of `{from}` goes unnoticed"),
    }
}

fn overwritten(fault: &Fault) -> bool {
    matches!(fault, Fault::WgmmaReading { .. } | Fault::Race { kind: RaceKind::WriteAfterRead, .. })
}

fn stuck(fault: &Fault) -> bool {
    matches!(fault, Fault::MbarrierNotCompleted { .. })
}

fn pending(fault: &Fault) -> bool {
    matches!(fault, Fault::AsyncPending { .. })
}

type Change = (&'static str, &'static str, fn(&Fault) -> bool);

#[test]
fn nothing_of_it_can_be_left_out() {
    let changes: [Change; 20] = [
        ("@!%done bra EMPTY;", "", pending),
        ("@!%done bra FULL;", "", pending),
        ("mbarrier.try_wait.parity.shared::cta.b64 %done, [%full+49168], %next;\n\t@!%done bra EMPTY;", "", pending),
        ("mbarrier.try_wait.parity.shared::cta.b64 %done, [%full+49152], %parity;\n\t@!%done bra FULL;", "", pending),
        // The stage is given back while the product that reads it is in flight.
        (
            "and.pred %done, %first, %later;\n\t@%done mbarrier.arrive.shared::cta.b64 _, [%empty+49168];",
            "@%first mbarrier.arrive.shared::cta.b64 _, [%full+49168];",
            overwritten,
        ),
        ("wgmma.wait_group.sync.aligned 1;", "wgmma.wait_group.sync.aligned 2;", overwritten),
        ("[%base+49168], 2;", "[%base+49168], 1;", |fault| overwritten(fault) || stuck(fault)),
        ("[%base+49168], 2;", "[%base+49168], 3;", stuck),
        ("wgmma.wait_group.sync.aligned 0;", "", |fault| *fault == Fault::RegisterInFlight { accumulator: true }),
        ("wgmma.commit_group.sync.aligned;", "", overwritten),
        ("wgmma.fence.sync.aligned;", "", |fault| *fault == Fault::MissingWgmmaFence),
        ("_, [%full+49152], 24576;", "_, [%full+49152], 16384;", pending),
        ("_, [%full+49152], 24576;", "_, [%full+49152], 32768;", stuck),
        ("bar.sync 1, 256;", "", overwritten),
        ("bar.sync 1, 256;\n\txor", "xor", |fault| matches!(fault, Fault::Race { .. })),
        ("bar.sync 1, 256;", "bar.sync 1, 288;", |fault| matches!(fault, Fault::BarrierNotReached { .. })),
        ("READY:\n\tbar.sync 0;", "READY:", |fault| matches!(fault, Fault::Race { .. })),
        ("fence.mbarrier_init.release.cluster;", "", |fault| matches!(fault, Fault::MbarrierNotFenced { .. })),
        ("setmaxnreg.dec.sync.aligned.u32 24;", "", |fault| *fault == Fault::NoRegisters { held: 168 }),
        ("aligned.u32 240;", "aligned.u32 248;", |fault| *fault == Fault::NoRegisters { held: 168 }),
    ];
    for (from, to, expected) in changes {
        let fault = broken(from, to);
        assert!(expected(&fault), "`{to}` instead of `{from}`: {fault}");
    }
}
