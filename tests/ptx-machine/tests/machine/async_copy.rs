//! `cp.async` when it is used as it should be.

use crate::harness::{mixed, run};

const PLACE: &str = "mov.u32 %r0, tile; shl.b32 %r1, %t, 4; add.s32 %r0, %r0, %r1;";

#[test]
fn groups_land_when_they_are_waited_for() {
    let inputs = [mixed(1), mixed(2), mixed(3)];
    let body = format!(
        "{PLACE}
         cp.async.ca.shared.global [%r0], [%in], 4;
         cp.async.commit_group;
         cp.async.ca.shared.global [%r0+4], [%in+128], 4;
         cp.async.commit_group;
         cp.async.wait_group 1;
         ld.shared.b32 %r2, [%r0];
         cp.async.wait_group 0;
         ld.shared.b32 %r3, [%r0+4];
         sub.s32 %d, %r2, %r3;"
    );
    assert_eq!(run(&body, inputs), std::array::from_fn(|i| inputs[0][i].wrapping_sub(inputs[1][i])));
}

#[test]
fn short_sources_are_filled_with_zeros() {
    let base = "mul.wide.u32 %l0, %t, 4; sub.s64 %l0, %in, %l0;";
    let values: [u32; 32] = std::array::from_fn(|lane| 0x0101_0101 * (lane as u32 + 1));
    for bytes in [0_u32, 3, 8, 16] {
        let body = format!(
            "{PLACE} {base} cp.async.cg.shared.global.L2::128B [%r0], [%l0], 16, {bytes}; cp.async.wait_all;
             ld.shared.v4.b32 {{%r2, %r3, %r4, %r5}}, [%r0];
             setp.eq.b32 %p0, %t, 0; selp.b32 %d, %r2, %r3, %p0; setp.eq.b32 %p0, %t, 2; selp.b32 %d, %r5, %d, %p0;"
        );
        let out = run(&body, [values; 3]);
        let kept = |word: u32| {
            let left = bytes.saturating_sub(4 * word).min(4);
            values[word as usize] & ((1_u64 << (8 * left)) - 1) as u32
        };
        assert_eq!((out[0], out[1], out[2]), (kept(0), kept(1), kept(3)), "{bytes} bytes");
    }
}

#[test]
fn a_predicate_can_ignore_the_source() {
    let values = mixed(8);
    let body = format!(
        "{PLACE} setp.lt.u32 %p0, %t, 8;
         cp.async.ca.shared.global [%r0], [%in], 4, %p0;
         cp.async.wait_all;
         ld.shared.b32 %d, [%r0];"
    );
    assert_eq!(run(&body, [values; 3]), std::array::from_fn(|lane| if lane < 8 { 0 } else { values[lane] }));
}
