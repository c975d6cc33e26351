//! What is not known is refused, with its line; a launch that does not fit the kernel does not start.

use crate::harness::kernel;
use ptx_machine::{Arg, DevPtr, Error, Launch, Memory, Module};

fn refused(body: &str) -> (u32, String, String) {
    match Module::load(&kernel(body)) {
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
