//! Every check, proven by a kernel that commits the crime.
//!
//! The guilty line of each file ends in `// crime`. Unless a case says otherwise, two warps run on 256 bytes of
//! initialised global and 1024 bytes of dynamic shared memory.

use ptx_machine::{Error, Fault, Finding, Launch, Memory, Module, RaceKind, Space};

pub fn setup(
    name: &str,
    threads: u32,
    initialised: bool,
) -> (Module, Launch<'static>, Memory, ptx_machine::DevPtr, u32) {
    let path = format!("{}/tests/crimes/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
    let ptx = std::fs::read_to_string(path).expect("the crime is on file");
    let line = ptx.lines().position(|line| line.ends_with("// crime")).expect("the file marks its crime") as u32 + 1;
    let module = Module::load(&ptx).unwrap_or_else(|error| panic!("{name}: {error}")).with_instruction_limit(10_000);
    let mut memory = Memory::new();
    let data = memory.alloc(u64::from(threads) * 4, 16);
    if initialised {
        memory.write(data, &vec![7_u32; threads as usize]).expect("the allocation is large enough");
    }
    let launch = Launch { kernel: "crime", grid: [1, 1, 1], block: [threads, 1, 1], shared_bytes: threads * 16 };
    (module, launch, memory, data, line)
}

pub fn finding(name: &str, threads: u32, initialised: bool) -> Finding {
    let (module, launch, memory, data, line) = setup(name, threads, initialised);
    let report = match module.launch(&launch, &[data.into()], &memory) {
        Err(Error::Findings(report)) => report,
        other => panic!("{name} went unnoticed: {other:?}"),
    };
    assert_eq!(report.findings.len(), 1, "{report}");
    let finding = report.findings[0].clone();
    assert_eq!((finding.line, finding.kernel.as_str()), (line, "crime"), "{finding}");
    assert!(finding.text.ends_with("// crime"));
    finding
}

fn crime(name: &str) -> Finding {
    finding(name, 64, true)
}

#[test]
fn global_accesses() {
    let found = crime("global_out_of_bounds");
    assert!(matches!(found.fault, Fault::OutOfBounds { space: Space::Global, bytes: 4, .. }), "{found}");
    assert_eq!(found.thread, [63, 0, 0]);
    let found = crime("global_misaligned");
    assert!(matches!(found.fault, Fault::Misaligned { space: Space::Global, bytes: 4, .. }), "{found}");
    let found = finding("global_uninitialised", 64, false);
    assert!(matches!(found.fault, Fault::Uninitialised { space: Space::Global, .. }), "{found}");
    let found = crime("null_pointer");
    assert_eq!(found.fault, Fault::OutOfBounds { space: Space::Generic, address: 0, bytes: 4 });
}

#[test]
fn shared_accesses() {
    let found = crime("shared_out_of_bounds");
    assert_eq!(found.fault, Fault::OutOfBounds { space: Space::Shared, address: 1024, bytes: 4 });
    assert_eq!(found.thread, [63, 0, 0]);
    let found = crime("shared_misaligned");
    assert_eq!(found.fault, Fault::Misaligned { space: Space::Shared, address: 4, bytes: 16 });
    let found = crime("shared_uninitialised");
    assert_eq!(found.fault, Fault::Uninitialised { space: Space::Shared, address: 0, bytes: 4 });
}

#[test]
fn local_accesses() {
    let found = crime("local_out_of_bounds");
    assert_eq!(found.fault, Fault::OutOfBounds { space: Space::Local, address: 8, bytes: 4 });
    let found = crime("local_uninitialised");
    assert_eq!(found.fault, Fault::Uninitialised { space: Space::Local, address: 0, bytes: 4 });
}

fn race(name: &str) -> (RaceKind, u64, u32) {
    match crime(name).fault {
        Fault::Race { kind, address, other_warp, .. } => (kind, address, other_warp),
        fault => panic!("{name} is no race but {fault}"),
    }
}

#[test]
fn shared_memory_races() {
    assert_eq!(race("race_read_after_write"), (RaceKind::ReadAfterWrite, 0, 0));
    assert_eq!(race("race_write_after_write"), (RaceKind::WriteAfterWrite, 0, 0));
    assert_eq!(race("race_write_after_read"), (RaceKind::WriteAfterRead, 128, 0));
    for (name, kind) in [
        ("atomic_then_load", RaceKind::ReadAfterWrite),
        ("atomic_then_store", RaceKind::WriteAfterWrite),
        ("store_then_atomic", RaceKind::WriteAfterWrite),
    ] {
        assert_eq!(race(name), (kind, 0, 0), "{name}");
    }
    let found = finding("barrier_of_some", 96, true).fault;
    assert!(
        matches!(found, Fault::Race { kind: RaceKind::ReadAfterWrite, address: 256, other_warp: 2, .. }),
        "{found}"
    );
    assert_eq!(race("barrier_write_after_arrival"), (RaceKind::ReadAfterWrite, 0, 0));
    let found = finding("store_conflict", 32, true);
    assert_eq!(found.fault, Fault::StoreConflict { address: 0 });
}

#[test]
fn asynchronous_copies() {
    for name in ["async_read_before_wait", "async_barrier_before_wait"] {
        assert_eq!(crime(name).fault, Fault::AsyncPending { address: 0 });
    }
    assert_eq!(crime("async_wait_too_few").fault, Fault::AsyncPending { address: 256 });
    assert_eq!(race("async_no_barrier"), (RaceKind::ReadAfterWrite, 0, 0));
    assert_eq!(race("async_refill").0, RaceKind::WriteAfterRead);
    let found = crime("async_misaligned");
    assert!(matches!(found.fault, Fault::Misaligned { space: Space::Global, bytes: 16, .. }), "{found}");
    let found = crime("async_out_of_bounds");
    assert!(matches!(found.fault, Fault::OutOfBounds { space: Space::Global, bytes: 4, .. }), "{found}");
}

#[test]
fn a_missing_wait_is_also_a_wrong_value() {
    let (module, launch, memory, data, _) = setup("async_read_before_wait", 32, true);
    module.launch(&launch, &[data.into()], &memory).expect_err("the crime is noticed");
    assert_eq!(memory.read::<u32>(data, 32).expect("the kernel wrote it"), [0; 32]);
}

#[test]
fn barriers() {
    let found = crime("barrier_missed");
    assert_eq!(found.fault, Fault::BarrierNotReached { barrier: 0, arrived: 1, expected: 2 });
    let found = crime("barrier_divergent");
    assert_eq!(found.fault, Fault::InactiveLanes { required: u32::MAX, active: 0xaaaa_aaaa });
    let found = crime("barrier_count");
    assert_eq!(found.fault, Fault::BarrierCount { barrier: 1, threads: 96 });
}

#[test]
fn missing_lanes() {
    for name in ["mma_inactive", "ldmatrix_inactive", "shfl_inactive", "vote_inactive"] {
        let found = finding(name, 32, true);
        assert_eq!(found.fault, Fault::InactiveLanes { required: u32::MAX, active: 0xffff }, "{name}");
    }
    let found = crime("shfl_not_a_member");
    assert_eq!(found.fault, Fault::InactiveLanes { required: u32::MAX, active: 0xffff });
    let found = crime("shfl_from_inactive");
    assert_eq!(found.fault, Fault::ShuffleFromInactive { source_lane: 20 });
}

#[test]
fn kernels_that_give_up() {
    assert_eq!(crime("trapped").fault, Fault::Trap);
    assert_eq!(crime("panicked").fault, Fault::Panic { function: "give_up".into() });
    assert_eq!(crime("runaway").fault, Fault::Runaway { instructions: 10_000 });
}
