//! Branches, divergence and reconvergence.

use crate::harness::{check, mixed, run};

/// A ballot sees which lanes are together.
const BALLOT: &str = "setp.eq.b32 %p7, %t, %t; vote.sync.ballot.b32";

#[test]
fn both_sides_meet_again() {
    let body = format!(
        "and.b32 %r0, %t, 1; setp.eq.b32 %p0, %r0, 1;
         @%p0 bra ODD;
         mov.b32 %r1, 10;
         bra.uni JOIN;
         ODD: mov.b32 %r1, 20;
         JOIN: {BALLOT} %r2, %p7, -1;
         add.s32 %d, %r1, %r2;"
    );
    let out = run(&body, [[0; 32]; 3]);
    assert_eq!(out, std::array::from_fn(|lane| if lane % 2 == 1 { 19 } else { 9 }));
}

#[test]
fn divergence_inside_divergence_inside_a_loop() {
    let body = format!(
        "mov.b32 %d, 0; mov.b32 %r0, 0;
         LOOP:
         and.b32 %r1, %r0, 1; setp.eq.b32 %p0, %r1, 0;
         setp.lt.u32 %p1, %r0, 5;
         xor.b32 %r2, %t, %r0; and.b32 %r2, %r2, 3; setp.eq.b32 %p2, %r2, 0;
         @!%p2 bra SKIP;
         @%p1 bra EARLY;
         add.s32 %d, %d, 100;
         bra.uni INNER;
         EARLY: add.s32 %d, %d, 1;
         INNER: @%p0 add.s32 %d, %d, 10;
         SKIP: add.s32 %r0, %r0, 1;
         and.b32 %r3, %a, 15;
         setp.lt.u32 %p3, %r0, %r3;
         @%p3 bra LOOP;
         {BALLOT} %r4, %p7, -1;
         setp.eq.b32 %p4, %r4, -1; selp.b32 %r5, 0, 5000, %p4; add.s32 %d, %d, %r5;"
    );
    let inputs = [mixed(3); 3];
    let out = run(&body, inputs);
    for (lane, got) in out.iter().enumerate() {
        let (mut d, mut i) = (0, 0);
        loop {
            if (lane as u32 ^ i) & 3 == 0 {
                d += if i < 5 { 1 } else { 100 };
                d += if i % 2 == 0 { 10 } else { 0 };
            }
            i += 1;
            if i >= inputs[0][lane] & 15 {
                break;
            }
        }
        assert_eq!(*got, d, "lane {lane}");
    }
}

#[test]
fn a_check_that_traps_keeps_nobody_apart() {
    let body = format!(
        "setp.lt.u32 %p0, %t, 16;
         @!%p0 bra JOIN;
         setp.gt.u32 %p1, %t, 100;
         @%p1 bra BAD;
         add.s32 %r0, %t, 1;
         bra.uni JOIN;
         BAD: trap;
         JOIN: {BALLOT} %d, %p7, -1;"
    );
    assert_eq!(run(&body, [[0; 32]; 3]), [u32::MAX; 32]);
}

#[test]
fn lanes_that_exit_leave_the_others_running() {
    let body = "mov.b32 %d, 7; st.global.b32 [%out], %d;
                setp.gt.u32 %p0, %t, 19;
                @%p0 exit;
                mov.b32 %d, 9;";
    assert_eq!(run(body, [[0; 32]; 3]), std::array::from_fn(|lane| if lane > 19 { 7 } else { 9 }));
}

#[test]
fn guards_write_only_where_they_hold() {
    let body = "setp.lt.s32 %p0, %a, %b; mov.b32 %d, %c; @%p0 mov.b32 %d, %a; @!%p0 add.s32 %d, %d, 1;";
    check(body, [mixed(1), mixed(2), mixed(3)], |a, b, c| if (a as i32) < b as i32 { a } else { c.wrapping_add(1) });
}

#[test]
fn scopes_hide_names_and_labels() {
    let block = "{ .reg .b32 %r0; mov.b32 %r0, 5; bra.uni NEXT; NEXT: add.s32 %d, %d, %r0; }";
    let body = format!("mov.b32 %d, 0; mov.b32 %r0, 1; {block} {block} add.s32 %d, %d, %r0;");
    assert_eq!(run(&body, [[0; 32]; 3]), [11; 32]);
}
