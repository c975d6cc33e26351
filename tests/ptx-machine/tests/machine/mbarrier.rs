//! Mbarriers and bulk copies when they are used as they should be.

use crate::harness::{Lanes, mixed, run_hopper};
use ptx_machine::{Launch, Memory, Module};

/// An mbarrier at the end of `tile` for `count` arrivals.
fn init(count: u32) -> String {
    format!(
        "setp.eq.u32 %p7, %t, 0; mov.u32 %r7, tile; mov.b32 %d, 0;
         @%p7 mbarrier.init.shared::cta.b64 [%r7+1016], {count}; @%p7 fence.mbarrier_init.release.cluster;"
    )
}

/// Adds `bit` to `%d` where the phase of a parity is complete. One look is enough for a warp that knows of all arrivals.
fn probe(parity: u32, bit: u32) -> String {
    let look = format!("mbarrier.test_wait.parity.shared::cta.b64 %p6, [%r7+1016], {parity};");
    format!("{look} selp.b32 %r6, {bit}, 0, %p6; add.s32 %d, %d, %r6;")
}

fn run(body: &str) -> Lanes {
    run_hopper(body, [mixed(1), mixed(2), mixed(3)])
}

#[test]
fn phases_alternate() {
    let arrive = "mbarrier.arrive.shared::cta.b64 _, [%r7+1016];";
    let body = [
        init(32),
        // The phase before the first counts as complete.
        probe(1, 1) + &probe(0, 2),
        arrive.to_owned() + &probe(0, 4) + &probe(1, 8),
        arrive.to_owned() + &probe(1, 16) + &probe(0, 32),
    ];
    assert_eq!(run(&body.concat()), [1 + 4 + 16; 32]);
}

#[test]
fn one_arrival_can_count_for_many() {
    let body = [
        init(7),
        "@%p7 mbarrier.arrive.release.cta.shared::cta.b64 %l0, [%r7+1016], 3;".into(),
        probe(0, 1),
        "@%p7 mbarrier.arrive.shared.b64 %l1, [%r7+1016], 4;".into(),
        probe(0, 2),
        "@%p7 mbarrier.arrive.shared.b64 %l2, [%r7+1016], 7;".into(),
        // States differ between phases alone.
        "setp.eq.u64 %p0, %l0, %l1; setp.ne.u64 %p1, %l1, %l2; and.pred %p0, %p0, %p1; and.pred %p0, %p0, %p7;
         selp.b32 %r0, 100, 0, %p0; add.s32 %d, %d, %r0;"
            .into(),
    ];
    assert_eq!(run(&body.concat()), std::array::from_fn(|lane| if lane == 0 { 102 } else { 2 }));
}

#[test]
fn an_invalidated_mbarrier_is_memory_again() {
    let again = "@%p7 mbarrier.inval.shared::cta.b64 [%r7+1016]; @%p7 st.shared.b32 [%r7+1016], 55;
                 ld.shared.b32 %d, [%r7+1016]; @%p7 mbarrier.init.shared.b64 [%r7+1016], 1;";
    assert_eq!(run(&(init(1) + again)), [55; 32]);
}

const COPY: &str = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes";
const WAIT: &str = "WAIT: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p0, [%r7+1016], 0; @!%p0 bra WAIT;";
const READ: &str = "shl.b32 %r0, %t, 2; add.s32 %r0, %r0, %r7; ld.shared.b32 %d, [%r0];";

#[test]
fn a_phase_waits_for_arrivals_and_bytes() {
    let rest = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r7+1016]";
    let body = [
        init(2),
        format!("@%p7 {rest}, 128; @%p7 {COPY} [%r7], [%in], 96, [%r7+1016];"),
        probe(0, 1),
        format!("@%p7 {COPY} [%r7+96], [%in+96], 32, [%r7+1016];"),
        probe(0, 2),
        format!("@%p7 mbarrier.arrive.shared::cta.b64 _, [%r7+1016]; mov.b32 %r5, %d; {WAIT} {READ}"),
        "add.s32 %d, %d, %r5;".into(),
    ];
    assert_eq!(run(&body.concat()), mixed(1));
}

#[test]
fn the_first_look_at_a_phase_with_copies_comes_too_early() {
    let body = [
        init(1),
        "@%p7 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r7+1016], 128;".into(),
        format!("@%p7 {COPY} [%r7], [%in], 128, [%r7+1016];"),
        probe(0, 1) + &probe(0, 2),
    ];
    assert_eq!(run(&body.concat()), [2; 32]);
}

#[test]
fn copies_may_come_before_what_they_are_expected_by() {
    let arrive = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r7+1016], 128;";
    let body = format!("{} @%p7 {COPY} [%r7], [%in], 128, [%r7+1016]; @%p7 {arrive} {WAIT} {READ}", init(1));
    assert_eq!(run(&body), mixed(1));
}

#[test]
fn every_lane_can_copy() {
    // Eight lanes take 16 bytes each, in reverse order.
    let body = format!(
        "{} setp.lt.u32 %p1, %t, 8; shl.b32 %r1, %t, 4; sub.s32 %r2, 112, %r1; add.s32 %r1, %r1, %r7;
         mul.wide.u32 %l0, %t, 4; sub.s64 %l0, %in, %l0; cvt.u64.u32 %l1, %r2; add.s64 %l0, %l0, %l1;
         @%p7 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r7+1016], 128;
         @%p1 {COPY} [%r1], [%l0], 16, [%r7+1016]; {WAIT} {READ}",
        init(1)
    );
    let given = mixed(1);
    assert_eq!(run(&body), std::array::from_fn(|lane| given[(7 - lane / 4) * 4 + lane % 4]));
}

/// Runs a crime after making it lawful.
fn run_reformed(name: &str, from: &str, to: &str) {
    let path = format!("{}/tests/crimes/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
    let ptx = std::fs::read_to_string(path).expect("the crime is on file");
    assert!(ptx.contains(from), "{name} has no `{from}`");
    let module = Module::load(&ptx.replacen(from, to, 1)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut memory = Memory::new();
    let data = memory.alloc_from(&[7_u32; 128]);
    let launch = Launch { kernel: "crime", grid: [1, 1, 1], block: [128, 1, 1], shared_bytes: 2048 };
    module.launch(&launch, &[data.into()], &memory).unwrap_or_else(|error| panic!("{name}: {error}"));
}

#[test]
fn what_sets_the_crimes_right() {
    let store = "@%first st.shared.b32 [%r1], %r0;";
    let arrive = "@%first mbarrier.arrive.shared::cta.b64 _, [%r1+1024];";
    let (early, late) = (format!("{arrive}\n\t{store}"), format!("{store}\n\t{arrive}"));
    let wait = "W: mbarrier.try_wait.parity.shared::cta.b64 %p0, [%r1+1024], 0; @!%p0 bra W;";
    let cases = [
        // A proxy fence of the writers before the barrier, or of the readers after it.
        ("wgmma_no_proxy_fence", "bar.sync 0;", "fence.proxy.async; bar.sync 0;"),
        ("wgmma_no_proxy_fence", "bar.sync 0;", "bar.sync 0; fence.proxy.async;"),
        ("wgmma_no_barrier", "::cta;", "::cta; bar.sync 0;"),
        ("bulk_over_store", "[%r1], %r0;", "[%r1], %r0; fence.proxy.async;"),
        ("bulk_refill", "%r2, [%r1];", "%r2, [%r1]; bar.sync 0;"),
        ("bulk_read_by_another", "OTHER:", &format!("OTHER: {wait}")),
        ("bulk_not_fenced", "bar.sync 0;", "fence.proxy.async; bar.sync 0;"),
        ("mbarrier_early_arrival", &early, &late),
        ("wgmma_read_in_flight", "add.s32", "wgmma.wait_group.sync.aligned 0; add.s32"),
        ("wgmma_no_fence_operand", "%a1, 7;", "%a1, 7; wgmma.fence.sync.aligned;"),
        (
            "wgmma_store_in_flight",
            "bar.sync 0;\n\t@%first st",
            "wgmma.wait_group.sync.aligned 0; bar.sync 0; @%first st",
        ),
    ];
    for (name, from, to) in cases {
        run_reformed(name, from, to);
    }
}
