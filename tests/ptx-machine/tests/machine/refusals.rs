//! What is not known is refused, with its line; a launch that does not fit the kernel does not start.

use crate::harness::{hopper_kernel, kernel};
use ptx_machine::{Arg, DevPtr, Error, Launch, Memory, Module};

fn refused(body: &str) -> (u32, String, String) {
    refused_by(&kernel(body), body)
}

fn refused_by(ptx: &str, body: &str) -> (u32, String, String) {
    match Module::load(ptx) {
        Err(Error::Unsupported { line, text, reason } | Error::Syntax { line, text, reason }) => (line, text, reason),
        Err(error) => panic!("{body}: {error}"),
        Ok(_) => panic!("{body} was accepted"),
    }
}

#[test]
fn unknown_instructions_types_and_modifiers() {
    let bodies = [
        "wgmma.fence.sync.aligned;",
        "add.sat.s32 %d, %a, %b;",
        "bfind.u16 %d, %h0;",
        "fns.b64 %d, %a, %b, %c;",
        "add.rz.f32 %d, %a, %b;",
        "mul.s32 %d, %a, %b;",
        "ex2.f32 %d, %a;",
        "cvt.f16.f32 %h0, %a;",
        "cvt.rn.f16.f32 %d, %a;",
        "ld.global.v8.b32 %d, [%in];",
        "ld.global.b128 %d, [%in];",
        "shfl.bfly.b32 %d, %a, 1, 31;",
        "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {%d,%r0,%r1,%r2}, {%a,%a,%a,%a}, {%b,%b}, {%c,%c,%c,%c};",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%d,%r0,%r1,%r2}, {%a,%a,%a,%a}, {%b}, {%c,%c,%c,%c};",
        "mov.u32 %d, %clock;",
        "add.s32 %d, %a;",
        "add.s32 %d, %a, %l0;",
        "add.s32 %d, %a, %undeclared;",
        "bra.uni NOWHERE;",
        "cp.async.bulk.commit_group;",
    ];
    for body in bodies {
        let (line, text, reason) = refused(body);
        assert_eq!(line, 20, "{body}: {reason}");
        assert_eq!(text, body, "{reason}");
    }
}

/// A few characters declare as many registers as the largest kernels have, several times over, and no more.
#[test]
fn registers_without_end() {
    for (count, fits) in [(60_000, true), (65_536, false), (815_339, false), (u32::MAX, false)] {
        let body = format!(".reg .pred %many<{count}>;");
        match Module::load(&kernel(&body)) {
            Ok(_) => assert!(fits, "{count} were accepted"),
            Err(error) => assert!(!fits && error.to_string().contains("registers"), "{count}: {error}"),
        }
    }
}

#[test]
fn unknown_forms_of_hopper_instructions() {
    let bodies = [
        "wgmma.mma_async.sync.aligned.m64n8k32.satfinite.s32.s8.s8 {%a,%b,%c,%d}, %l0, %l1, %p0;",
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%a,%b,%c,%d}, %l0, %l1, %p0, 1, 1, 0, 0;",
        "wgmma.mma_async.sync.aligned.m64n40k32.s32.s8.s8 {%a,%b,%c,%d}, %l0, %l1, %p0;",
        "wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.s8 {%a,%b,%c,%d}, %l0, %l1, %p0;",
        "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {%a,%b,%c,%d}, {%a,%b}, %l1, %p0;",
        "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {%a,%b,%c,%d}, %l0, %r1, %p0;",
        "wgmma.fence.aligned;",
        "wgmma.wait_group.sync.aligned 8;",
        "setmaxnreg.inc.sync.aligned.u32 64;",
        "mbarrier.init.b64 [%in], 1;",
        "mbarrier.init.shared::cta.b64 [in], 1;",
        "mbarrier.arrive.release.cluster.shared::cta.b64 _, [tile];",
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [tile];",
        "mbarrier.arrive.noComplete.shared::cta.b64 %l0, [tile], 1;",
        "mbarrier.try_wait.shared::cta.b64 %p0, [tile], %l0;",
        "mbarrier.try_wait.parity.shared::cta.b64 %p0, [tile], 0, 100;",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%r0], [%in], 16, [%r1], %l0;",
        "cp.async.bulk.global.shared::cta.bulk_group [%out], [%r0], 16;",
        "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [%r0], [%in, {%r1}], [%r2];",
        "fence.proxy.alias;",
        "fence.proxy.async.global;",
        "fence.mbarrier_init.release.cta;",
        "elect.sync %d, -1;",
        "griddepcontrol.launch;",
        "sub.s16x2 %d, %a, %b;",
        "max.relu.s16x2 %d, %a, %b;",
    ];
    for body in bodies {
        let (line, text, reason) = refused_by(&hopper_kernel(body), body);
        assert_eq!((line, text.as_str()), (20, body), "{reason}");
    }
}

#[test]
fn instructions_of_another_architecture() {
    let bodies = [
        "mbarrier.init.shared::cta.b64 [tile], 1;",
        "fence.proxy.async;",
        "elect.sync _|%p0, -1;",
        "max.s16x2 %d, %a, %b;",
        "griddepcontrol.wait;",
    ];
    for body in bodies {
        let (_, _, reason) = refused(body);
        assert_eq!(reason, "an instruction of sm_90 or sm_90a in a module for sm_80", "{body}");
    }
    let body = "wgmma.fence.sync.aligned;";
    let (_, _, reason) = refused_by(&hopper_kernel(body).replacen("sm_90a", "sm_90", 1), body);
    assert_eq!(reason, "an instruction of sm_90a in a module for sm_90");
}

/// Predicates have no size in memory, so that a variable of them had an alignment of nothing.
#[test]
fn predicates_in_memory() {
    let global = |ty: &str| format!(".global {ty} flag;\n{}", kernel("mov.b32 %d, 0;"));
    assert!(Module::load(&global(".b8")).is_ok());
    for (ptx, of) in [
        (global(".pred"), "a variable of the module"),
        (kernel(".shared .pred flag;"), "a variable of the kernel"),
        (kernel("mov.b32 %d, 0;").replacen(".param .u64", ".param .pred", 1), "a parameter"),
    ] {
        let (_, _, reason) = refused_by(&ptx, of);
        assert_eq!(reason, "predicates are in registers alone", "{of}");
    }
}

#[test]
fn setmaxnreg_needs_the_size_of_the_cta() {
    let with = |count: u32| {
        let ptx = hopper_kernel(&format!("setmaxnreg.inc.sync.aligned.u32 {count};"));
        Module::load(&ptx.replacen("out)\n", "out) .maxntid 384\n", 1)).map(|_| ())
    };
    assert!(with(240).is_ok());
    for count in [16, 100, 264] {
        assert!(matches!(with(count), Err(Error::Syntax { .. })), "{count}");
    }
}

#[test]
fn launches_that_do_not_fit() {
    let module = Module::load(&kernel("mov.b32 %d, 0;")).expect("the kernel is plain");
    let memory = Memory::new();
    let fits = Launch { kernel: "test", grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
    let start = |launch: &Launch<'_>, args: &[Arg]| module.launch(launch, args, &memory).expect_err("it does not fit");
    let pointers = [DevPtr::NULL.into(), DevPtr::NULL.into()];
    let other = Launch { kernel: "other", ..fits.clone() };
    assert!(matches!(start(&other, &pointers), Error::NoKernel { .. }));
    assert!(matches!(start(&fits, &pointers[..1]), Error::ArgumentCount { expected: 2, got: 1, .. }));
    let number = [DevPtr::NULL.into(), 0_u64.into()];
    assert!(matches!(start(&fits, &number), Error::Argument { index: 1, .. }));
    let misaligned = [DevPtr(2).into(), DevPtr::NULL.into()];
    assert!(matches!(start(&fits, &misaligned), Error::Argument { index: 0, .. }));
    let large = Launch { block: [1025, 1, 1], ..fits.clone() };
    assert!(matches!(start(&large, &pointers), Error::Launch { .. }));
    let empty = Launch { grid: [0, 1, 1], ..fits.clone() };
    assert!(matches!(start(&empty, &pointers), Error::Launch { .. }));
    let greedy = Launch { shared_bytes: 256 << 10, ..fits };
    assert!(matches!(start(&greedy, &pointers), Error::Launch { .. }));
}
