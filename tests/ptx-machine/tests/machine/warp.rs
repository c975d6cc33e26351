//! Shuffles and votes.

use crate::harness::{Lanes, mixed, run, run_hopper};

fn lanes(f: impl Fn(usize) -> u32) -> Lanes {
    std::array::from_fn(f)
}

#[test]
fn shuffles() {
    let values = mixed(6);
    let inputs = [values; 3];
    let butterfly = run("shfl.sync.bfly.b32 %d, %a, 5, 31, -1;", inputs);
    assert_eq!(butterfly, lanes(|lane| values[lane ^ 5]));
    let broadcast = run("shfl.sync.idx.b32 %d, %a, 3, 31, -1;", inputs);
    assert_eq!(broadcast, [values[3]; 32]);
    let up = run("shfl.sync.up.b32 %d, %a, 4, 0, -1;", inputs);
    assert_eq!(up, lanes(|lane| values[if lane >= 4 { lane - 4 } else { lane }]));
    let down = run("shfl.sync.down.b32 %d, %a, 4, 31, -1;", inputs);
    assert_eq!(down, lanes(|lane| values[if lane < 28 { lane + 4 } else { lane }]));
}

#[test]
fn shuffles_in_segments_of_eight() {
    let values = mixed(6);
    // A segment mask of 0b11000 above a clamp of seven.
    let down = run("shfl.sync.down.b32 %d, %a, 3, 0x1807, -1;", [values; 3]);
    assert_eq!(down, lanes(|lane| values[if lane % 8 < 5 { lane + 3 } else { lane }]));
    let index = run("shfl.sync.idx.b32 %d, %a, 2, 0x1807, -1;", [values; 3]);
    assert_eq!(index, lanes(|lane| values[lane / 8 * 8 + 2]));
    let in_range = "shfl.sync.down.b32 %r0|%p0, %a, 3, 0x1807, -1; selp.b32 %d, 1, 0, %p0;";
    assert_eq!(run(in_range, [values; 3]), lanes(|lane| u32::from(lane % 8 < 5)));
}

#[test]
fn shuffles_by_a_register_and_among_some_lanes() {
    let values = mixed(6);
    let by_register =
        run("and.b32 %r0, %t, 3; xor.b32 %r0, %r0, 1; shfl.sync.idx.b32 %d, %a, %r0, 0x1c1f, -1;", [values; 3]);
    assert_eq!(by_register, lanes(|lane| values[lane ^ 1]));
    let some = "mov.b32 %d, 7; setp.lt.u32 %p1, %t, 8; @%p1 shfl.sync.bfly.b32 %d, %a, 3, 0x1f, 0xff;";
    assert_eq!(run(some, [values; 3]), lanes(|lane| if lane < 8 { values[lane ^ 3] } else { 7 }));
    let up = "shfl.sync.up.b32 %r0|%p0, %a, 3, 0, -1; selp.b32 %d, %r0, 5, %p0;";
    assert_eq!(run(up, [values; 3]), lanes(|lane| if lane < 3 { 5 } else { values[lane - 3] }));
    let only_predicate = "shfl.sync.down.b32 _|%p0, %a, 1, 31, -1; selp.b32 %d, 1, 0, %p0;";
    assert_eq!(run(only_predicate, [values; 3]), lanes(|lane| u32::from(lane < 31)));
}

#[test]
fn votes() {
    let odd = "and.b32 %r0, %t, 1; setp.eq.b32 %p0, %r0, 1;";
    let after = |vote: &str| run(&format!("{odd} {vote}"), [[0; 32]; 3]);
    assert_eq!(after("vote.sync.ballot.b32 %d, %p0, -1;"), [0xaaaa_aaaa; 32]);
    assert_eq!(after("vote.sync.ballot.b32 %d, !%p0, -1;"), [0x5555_5555; 32]);
    assert_eq!(after("vote.sync.any.pred %p1, %p0, -1; selp.b32 %d, 1, 0, %p1;"), [1; 32]);
    assert_eq!(after("vote.sync.all.pred %p1, %p0, -1; selp.b32 %d, 1, 0, %p1;"), [0; 32]);
    assert_eq!(after("vote.sync.uni.pred %p1, %p0, -1; selp.b32 %d, 1, 0, %p1;"), [0; 32]);
    let active = after("mov.b32 %d, 0; @%p0 bra ODD; bra.uni DONE; ODD: activemask.b32 %d; DONE:");
    assert_eq!(active, lanes(|lane| if lane % 2 == 1 { 0xaaaa_aaaa } else { 0 }));
}

#[test]
fn elections() {
    let elect = "elect.sync %r0|%p0, -1; selp.b32 %d, 100, 0, %p0; add.s32 %d, %d, %r0;";
    assert_eq!(run_hopper(elect, [[0; 32]; 3]), lanes(|lane| if lane == 0 { 100 } else { 0 }));
    let some = "mov.b32 %d, 7; setp.lt.u32 %p1, %t, 5; @%p1 bra DONE; elect.sync _|%p0, 0xffffffe0;
                selp.b32 %d, 100, 0, %p0; DONE:";
    assert_eq!(run_hopper(some, [[0; 32]; 3]), lanes(|lane| if lane < 5 { 7 } else { u32::from(lane == 5) * 100 }));
}

#[test]
fn special_registers() {
    let all = "mov.u32 %r0, %laneid; mov.u32 %r1, %lanemask_lt; mov.u32 %r2, %ntid.x; mov.u32 %r3, %nctaid.y;
               add.s32 %d, %r0, %r1; add.s32 %d, %d, %r2; mad.lo.s32 %d, %r3, 1000, %d;";
    assert_eq!(run(all, [[0; 32]; 3]), lanes(|lane| lane as u32 + ((1 << lane) - 1) + 32 + 1000));
}
