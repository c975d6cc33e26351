//! The checks of mbarriers, bulk copies and warpgroups, each proven by a kernel that commits the crime.
//!
//! As in `crimes`, but with four warps, 512 bytes of global and 2048 bytes of shared memory, which begins at 1024.

use crate::crimes::finding;
use ptx_machine::{Fault, RaceKind, Space};

fn crime(name: &str) -> Fault {
    finding(name, 128, true).fault
}

#[test]
fn registers_in_flight() {
    for name in ["wgmma_read_in_flight", "wgmma_write_in_flight", "wgmma_wait_too_few", "wgmma_not_committed"] {
        assert_eq!(crime(name), Fault::RegisterInFlight { accumulator: true }, "{name}");
    }
    assert_eq!(crime("wgmma_operand_in_flight"), Fault::RegisterInFlight { accumulator: false });
}

#[test]
fn missing_wgmma_fences() {
    for name in ["wgmma_no_fence", "wgmma_no_fence_operand", "wgmma_no_fence_shape"] {
        assert_eq!(crime(name), Fault::MissingWgmmaFence, "{name}");
    }
}

#[test]
fn what_wgmma_reads() {
    assert_eq!(crime("wgmma_before_copy"), Fault::AsyncPending { address: 1024 });
    assert_eq!(crime("wgmma_uninitialised"), Fault::Uninitialised { space: Space::Shared, address: 1024, bytes: 16 });
    let found = crime("wgmma_no_proxy_fence");
    assert_eq!(found, Fault::MissingProxyFence { address: 1024, other_warp: 0, other_line: 20 });
    let found = crime("wgmma_no_barrier");
    assert!(matches!(found, Fault::Race { kind: RaceKind::ReadAfterWrite, .. }), "{found}");
    assert_eq!(crime("wgmma_descriptor"), Fault::Descriptor { descriptor: 0x0002_0010_0008_0040 });
    let outside = Fault::OutOfBounds { space: Space::Shared, address: 3072, bytes: 16 };
    assert_eq!(crime("wgmma_out_of_bounds"), outside);
    let below = Fault::OutOfBounds { space: Space::Shared, address: 0, bytes: 16 };
    assert_eq!(crime("wgmma_absolute_address"), below);
}

#[test]
fn tiles_overwritten_while_wgmma_reads_them() {
    for name in ["wgmma_refill_in_flight", "wgmma_store_in_flight"] {
        assert_eq!(crime(name), Fault::WgmmaReading { address: 1024 }, "{name}");
    }
    let found = finding("wgmma_refill", 256, true).fault;
    assert!(
        matches!(found, Fault::Race { kind: RaceKind::WriteAfterRead, address: 1024, other_warp: 0, .. }),
        "{found}"
    );
}

#[test]
fn warpgroups_that_do_not_act_as_one() {
    let found = crime("wgmma_inactive");
    assert_eq!(found, Fault::InactiveLanes { required: u32::MAX, active: 0xffff });
    assert_eq!(crime("wgmma_missing_warp"), Fault::WarpgroupIncomplete { warp: 3 });
    assert_eq!(crime("setmaxnreg_missing_warp"), Fault::WarpgroupIncomplete { warp: 3 });
    assert!(matches!(crime("wgmma_diverged"), Fault::WarpgroupDiverged { .. }));
    assert!(matches!(crime("wgmma_other_operands"), Fault::WarpgroupDiverged { .. }));
    assert_eq!(crime("wgmma_not_uniform"), Fault::NotUniform);
    assert_eq!(finding("wgmma_half_warpgroup", 64, true).fault, Fault::NotAWarpgroup);
}

#[test]
fn trades_of_registers() {
    assert_eq!(crime("setmaxnreg_direction"), Fault::RegisterCount { held: 256, count: 64 });
    assert_eq!(finding("setmaxnreg_no_registers", 512, true).fault, Fault::NoRegisters { held: 128 });
}

#[test]
fn bulk_copies_from_and_to_wrong_places() {
    assert!(matches!(crime("bulk_misaligned"), Fault::Misaligned { space: Space::Global, bytes: 16, .. }));
    assert!(matches!(crime("bulk_out_of_bounds"), Fault::OutOfBounds { space: Space::Global, .. }));
    let found = finding("bulk_uninitialised", 128, false).fault;
    assert!(matches!(found, Fault::Uninitialised { space: Space::Global, .. }), "{found}");
    assert_eq!(crime("bulk_size"), Fault::BulkCopySize { bytes: 24 });
    let outside = Fault::OutOfBounds { space: Space::Shared, address: 2944, bytes: 512 };
    assert_eq!(crime("bulk_shared_out_of_bounds"), outside);
}

#[test]
fn bulk_copies_that_the_mbarrier_does_not_expect() {
    for name in ["bulk_too_few_expected", "bulk_second_unexpected"] {
        assert_eq!(crime(name), Fault::MbarrierBytes { address: 2048, bytes: -128 }, "{name}");
    }
    let found = crime("bulk_too_many_expected");
    assert_eq!(found, Fault::MbarrierNotCompleted { address: 2048, parity: 0, arrivals: 0, bytes: 256 });
    assert_eq!(crime("bulk_not_fenced"), Fault::MbarrierNotFenced { address: 2048 });
    assert_eq!(crime("mbarrier_fence_by_stranger"), Fault::MbarrierNotFenced { address: 2048 });
}

#[test]
fn bulk_copies_that_nobody_waits_for() {
    for name in ["bulk_not_waited", "bulk_read_before_wait", "bulk_read_by_another", "bulk_over_bulk"] {
        assert_eq!(crime(name), Fault::AsyncPending { address: 1024 }, "{name}");
    }
}

#[test]
fn bulk_copies_over_memory_in_use() {
    let found = crime("bulk_refill");
    assert!(
        matches!(found, Fault::Race { kind: RaceKind::WriteAfterRead, address: 1024, other_warp: 0, .. }),
        "{found}"
    );
    assert!(matches!(crime("bulk_over_store"), Fault::MissingProxyFence { address: 1024, other_warp: 0, .. }));
}

#[test]
fn phases_that_never_come() {
    let found = crime("mbarrier_never");
    assert_eq!(found, Fault::MbarrierNotCompleted { address: 2048, parity: 0, arrivals: 1, bytes: 0 });
    assert_eq!(crime("mbarrier_spin"), Fault::Runaway { instructions: 10_000 });
}

#[test]
fn mbarriers_out_of_place() {
    for name in ["mbarrier_not_initialised", "mbarrier_invalidated"] {
        assert_eq!(crime(name), Fault::NotAnMbarrier { address: 2048 }, "{name}");
    }
    assert_eq!(crime("mbarrier_twice"), Fault::MbarrierInUse { address: 2048 });
    assert_eq!(crime("mbarrier_stored_to"), Fault::MbarrierInUse { address: 2052 });
    assert_eq!(crime("mbarrier_arrivals"), Fault::MbarrierArrivals { address: 2048, expected: 1 });
    assert_eq!(crime("mbarrier_count"), Fault::MbarrierCount { address: 2048, count: 0 });
    assert_eq!(crime("mbarrier_misaligned"), Fault::Misaligned { space: Space::Shared, address: 2052, bytes: 8 });
}

#[test]
fn mbarriers_do_not_order_what_they_should_not() {
    for name in ["mbarrier_no_barrier", "mbarrier_early_arrival"] {
        let found = crime(name);
        assert!(matches!(found, Fault::Race { kind: RaceKind::ReadAfterWrite, other_warp: 0, .. }), "{found}");
    }
}

#[test]
fn what_one_lane_says_for_others() {
    let found = crime("mbarrier_speaks_for_others");
    let race = Fault::Race { kind: RaceKind::WriteAfterRead, address: 1152, other_warp: 1, other_line: None };
    assert_eq!(found, race);
    // With the lanes' meeting in between it is right.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/crimes/mbarrier_speaks_for_others.ptx");
    let ptx = std::fs::read_to_string(path).expect("the crime is on file");
    let right = ptx.replace("@%speaks mbarrier", "bar.warp.sync -1;\n@%speaks mbarrier");
    let mut memory = ptx_machine::Memory::new();
    let data = memory.alloc(512, 16);
    let launch = ptx_machine::Launch { kernel: "crime", grid: [1, 1, 1], block: [128, 1, 1], shared_bytes: 2048 };
    let module = ptx_machine::Module::load(&right).expect("the machine knows all of it");
    module.launch(&launch, &[data.into()], &memory).expect("nothing is wrong with it");
}
