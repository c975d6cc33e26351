//! Loads, stores, address spaces and atomics.

use crate::harness::{check, mixed, run};
use ptx_machine::{Error, Fault, Launch, Memory, Module, Space};

#[test]
fn vectors_and_narrow_elements() {
    let place = "mov.u32 %r0, tile; shl.b32 %r1, %t, 4; add.s32 %r0, %r0, %r1;";
    let inputs = [mixed(1), mixed(2), mixed(3)];
    let body = format!(
        "{place} st.shared.v4.b32 [%r0], {{%a, %b, %c, 0}};
         ld.shared.v2.b64 {{%l0, %l1}}, [%r0]; mov.b64 {{_, %r2}}, %l0; cvt.u32.u64 %r3, %l1;
         ld.shared.s8 %r4, [%r0+1]; ld.shared.v2.u16 {{%h0, %h1}}, [%r0+4]; cvt.u32.u16 %r5, %h1;
         xor.b32 %d, %r2, %r3; xor.b32 %d, %d, %r4; xor.b32 %d, %d, %r5;"
    );
    check(&body, inputs, |a, b, c| b ^ c ^ (a >> 8) as i8 as u32 ^ b >> 16);
    let bytes = format!(
        "{place} st.shared.b32 [%r0], 0; cvt.u16.u32 %h0, %a; st.shared.b8 [%r0+2], %h0; st.shared.b16 [%r0], %h0;
         ld.shared.b32 %d, [%r0];"
    );
    check(&bytes, inputs, |a, _, _| a & 0xffff | (a & 0xff) << 16);
}

#[test]
fn generic_addresses_find_their_space() {
    let body = "mov.u64 %l0, tile; cvta.shared.u64 %l1, %l0; mul.wide.u32 %l2, %t, 4; add.s64 %l1, %l1, %l2;
                st.b32 [%l1], %a; ld.b32 %r0, [%l1];
                cvta.to.shared.u64 %l3, %l1; cvt.u32.u64 %r1, %l3; ld.shared.b32 %r2, [%r1];
                ld.b32 %r3, [%in+128]; add.s32 %d, %r0, %r2; add.s32 %d, %d, %r3;";
    check(body, [mixed(1), mixed(2), mixed(3)], |a, b, _| a.wrapping_mul(2).wrapping_add(b));
    let local = "{ .local .align 8 .b8 depot[16]; mov.b64 %l0, depot; cvta.local.u64 %l1, %l0;
                 st.local.b32 [%l0+4], %a; ld.b32 %d, [%l1+4]; }";
    check(local, [mixed(1); 3], |a, _, _| a);
}

#[test]
fn a_prefetch_reads_inside_memory() {
    check("prefetch.global.L2 [%in]; mov.b32 %d, %a;", [mixed(1), mixed(2), mixed(3)], |a, _, _| a);
    let text = GLOBAL.replace("ld.u8 %r3, [%rd1+6];", "prefetch.global.L2 [%rd1+8];");
    let module = Module::load(&text).expect("the machine knows all of it");
    let mut memory = Memory::new();
    let sums = memory.alloc_from(&[0_u32; 6]);
    let launch = Launch { kernel: "count", grid: [1, 1, 1], block: [1, 1, 1], shared_bytes: 0 };
    let outside = module.launch(&launch, &[sums.into(), vec![0_u8; 8].into(), 1_u32.into()], &memory);
    assert!(matches!(outside, Err(Error::Findings(_))), "{outside:?}");
}

#[test]
fn atomics_count_every_lane() {
    let body = "mov.u32 %r0, tile; mov.b32 %r1, 0; setp.eq.b32 %p0, %t, 0; @%p0 st.shared.b32 [%r0], %r1;
                atom.shared.add.u32 %r2, [%r0], 2; ld.shared.b32 %r3, [%r0]; add.s32 %d, %r2, %r3;";
    assert_eq!(run(body, [[0; 32]; 3]), std::array::from_fn(|lane| 2 * lane as u32 + 64));
}

const GLOBAL: &str = ".version 7.0
.target sm_80
.address_size 64
.global .align 4 .b8 table[8] = {1, 2, 3, 4, 5, 6, 7, 8};
.const .align 4 .f32 factor = 0f40000000;
.global .align 8 .u64 pointer = generic(table);
.visible .entry count(.param .u64 .ptr .align 4 sums, .param .align 4 .b8 pair[8], .param .u32 n)
{
    .reg .b32 %r<8>;
    .reg .b64 %rd<8>;
    ld.param.b64 %rd0, [sums];
    ld.param.b32 %r0, [pair+4];
    ld.param.u32 %r1, [n];
    ld.const.f32 %r2, [factor];
    ld.global.b64 %rd1, [pointer];
    ld.u8 %r3, [%rd1+6];
    red.global.add.u32 [%rd0], %r0;
    atom.global.add.f32 %r4, [%rd0+4], %r2;
    atom.global.max.u32 %r5, [%rd0+8], %r3;
    atom.global.add.u64 %rd2, [%rd0+16], 4294967297;
    red.global.inc.u32 [%rd0+12], %r1;
    ret;
}";

#[test]
fn ctas_share_global_memory() -> Result<(), Error> {
    let module = Module::load(GLOBAL)?;
    let mut memory = Memory::new();
    let sums = memory.alloc_from(&[0_u32; 6]);
    let launch = Launch { kernel: "count", grid: [5, 3, 2], block: [40, 2, 1], shared_bytes: 0 };
    let pair: Vec<u8> = [[9, 0, 0, 0], [3, 0, 0, 0]].concat();
    let stats = module.launch(&launch, &[sums.into(), pair.into(), 1000_u32.into()], &memory)?;
    let threads = 30 * 80;
    let wide = [threads, threads];
    let expected = [3 * threads, (2.0 * threads as f32).to_bits(), 7, threads % 1001, wide[0], wide[1]];
    assert_eq!(memory.read::<u32>(sums, 6)?, expected);
    assert_eq!((stats.ctas, stats.lane_instructions), (30, 12 * u64::from(threads)));
    Ok(())
}

#[test]
fn the_host_is_checked_too() -> Result<(), Error> {
    let mut memory = Memory::new();
    let ptr = memory.alloc(10, 2);
    assert_eq!((ptr.0 % 2, ptr.0 % 4), (0, 2));
    memory.write(ptr.offset(4), &[1_u16, 2])?;
    assert_eq!(memory.read::<u16>(ptr.offset(4), 2)?, [1, 2]);
    assert!(matches!(memory.read::<u8>(ptr, 10), Err(Error::HostUninitialised { address }) if address == ptr.0));
    assert!(matches!(memory.write(ptr.offset(8), &[0_u32]), Err(Error::HostOutOfBounds { bytes: 4, .. })));
    Ok(())
}

/// CTA n waits until n CTAs before it have counted, then counts: it ends only where CTAs start in order.
#[test]
fn ctas_wait_for_earlier_ones() {
    const CTAS: u32 = 500;
    let module = Module::load(
        ".version 7.0
         .target sm_80
         .address_size 64
         .visible .entry turns(.param .u64 .ptr .align 4 count)
         {
         .reg .pred %p;
         .reg .b32 %r<3>;
         .reg .b64 %rd;
         ld.param.b64 %rd, [count];
         mov.u32 %r0, %ctaid.x;
         WAIT:
         ld.acquire.gpu.global.b32 %r1, [%rd];
         setp.ne.u32 %p, %r0, %r1;
         @%p bra WAIT;
         atom.acq_rel.gpu.global.add.u32 %r2, [%rd], 1;
         ret;
         }",
    )
    .unwrap();
    let mut memory = Memory::new();
    let count = memory.alloc_from(&[0_u32]);
    let launch = Launch { kernel: "turns", grid: [CTAS, 1, 1], block: [1, 1, 1], shared_bytes: 0 };
    module.launch(&launch, &[count.into()], &memory).unwrap();
    assert_eq!(memory.read::<u32>(count, 1).unwrap(), [CTAS]);
}

/// One structure by value, as `rustc` and other compilers pass it: 8, 4, 2 and 1 bytes at their offsets, and vectors.
const STRUCTURE: &str = ".version 8.4
.target sm_90a
.address_size 64
.visible .entry read(.param .align 8 .b8 args[48], .param .align 16 .b8 more[16])
{
    .reg .b16 %h<4>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<4>;
    griddepcontrol.wait;
    ld.param.b64 %rd0, [args];
    ld.param.b32 %r0, [args+8];
    ld.param.u16 %h0, [args+12];
    ld.param.s8 %h1, [args+14];
    ld.param.v2.b32 {%r1, %r2}, [args+16];
    ld.param.v2.u64 {%rd1, %rd2}, [more];
    ld.param.f32 %r3, [args+44];
    cvt.u32.u16 %r4, %h0;
    cvt.s32.s16 %r5, %h1;
    griddepcontrol.launch_dependents;
    st.global.v4.b32 [%rd0], {%r0, %r1, %r2, %r3};
    st.global.v2.b64 [%rd0+16], {%rd1, %rd2};
    st.global.v2.b32 [%rd0+32], {%r4, %r5};
    ret;
}";

#[test]
fn structures_by_value_are_read_at_their_offsets() {
    let module = Module::load(STRUCTURE).expect("the machine knows all of it");
    let mut memory = Memory::new();
    let out = memory.alloc(40, 16);
    let mut args = vec![0_u8; 48];
    let mut put = |at: usize, bytes: &[u8]| args[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &out.0.to_le_bytes());
    put(8, &0x0102_0304_u32.to_le_bytes());
    put(12, &0xfffe_u16.to_le_bytes());
    put(14, &[0x80]);
    put(16, &[1, 0, 0, 0, 2, 0, 0, 0]);
    put(44, &1.5_f32.to_le_bytes());
    let more: Vec<u8> = (0..16).collect();
    let launch = Launch { kernel: "read", grid: [1, 1, 1], block: [1, 1, 1], shared_bytes: 0 };
    module.launch(&launch, &[args.clone().into(), more.into()], &memory).expect("nothing is wrong with it");
    let got = memory.read::<u32>(out, 10).expect("all of it is written");
    let want = [0x0102_0304, 1, 2, 1.5_f32.to_bits(), 0x0302_0100, 0x0706_0504, 0x0b0a_0908, 0x0f0e_0d0c, 0xfffe];
    assert_eq!((&got[..9], got[9] as i32), (want.as_slice(), -128));
    let short = module.launch(&launch, &[args[..40].to_vec().into(), vec![0; 16].into()], &memory);
    assert!(matches!(short, Err(Error::Argument { index: 0, .. })));
    let past = Module::load(
        &STRUCTURE
            .replace("args+44", "args+48")
            .replace(", .param .align 16 .b8 more[16]", "")
            .replace("[more]", "[args+32]"),
    );
    let past = past.expect("the text is as good as before").launch(&launch, &[args.into()], &memory);
    let Err(Error::Findings(report)) = past else { panic!("a read past the parameters went unnoticed") };
    assert!(matches!(report.findings[0].fault, Fault::OutOfBounds { space: Space::Param, .. }), "{report}");
}

/// A kernel that copies `count` elements of a type, each `step` bytes after the one before.
fn copy(ty: &str) -> Module {
    let ptx = format!(
        ".version 7.0
.target sm_80
.address_size 64
.visible .entry copy(.param .u64 .ptr .align 1 from, .param .u64 .ptr .align 1 to, .param .u64 step)
{{
    .reg .b16 %h;
    .reg .b32 %r;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd0, [from];
    ld.param.u64 %rd1, [to];
    ld.param.u64 %rd2, [step];
    mov.u32 %r, %tid.x;
    cvt.u64.u32 %rd3, %r;
    mul.lo.s64 %rd3, %rd3, %rd2;
    add.s64 %rd0, %rd0, %rd3;
    add.s64 %rd1, %rd1, %rd3;
    ld.global.{ty} %h, [%rd0];
    st.global.{ty} [%rd1], %h;
    ret;
}}"
    );
    Module::load(&ptx).expect("the machine knows all of it")
}

#[test]
fn memory_takes_room_only_where_it_is_written() {
    let mut memory = Memory::new();
    let (step, count) = ((1_u64 << 33) + 2, 100);
    let span = step * (count - 1) + 2;
    // starts that are aligned to an element, and to nothing more
    let [from, to] = [(); 2].map(|()| memory.alloc(span, 2));
    assert_eq!((from.0 % 4, to.0 % 4), (2, 2));
    for i in 0..count {
        memory.write(from.offset(i * step), &[1000 + i as u16]).expect("the place is inside");
    }
    let launch = Launch { kernel: "copy", grid: [1, 1, 1], block: [count as u32, 1, 1], shared_bytes: 0 };
    copy("b16").launch(&launch, &[from.into(), to.into(), step.into()], &memory).expect("nothing is wrong with it");
    assert_eq!((memory.written(from), memory.written(to)), (Ok(2 * count), Ok(2 * count)));
    for i in 0..count {
        assert_eq!(memory.read::<u16>(to.offset(i * step), 1), Ok(vec![1000 + i as u16]));
    }
    assert_eq!(memory.read::<u8>(to.offset(2), 1), Err(Error::HostUninitialised { address: to.0 + 2 }));
    let past = to.offset(span - 1);
    assert_eq!(memory.read::<u16>(past, 1), Err(Error::HostOutOfBounds { address: past.0, bytes: 2 }));
}

#[test]
fn a_start_that_is_aligned_to_little_moves_no_word() {
    for align in [1_u64, 2, 4, 8] {
        let mut memory = Memory::new();
        let bytes: Vec<u8> = (0..64).collect();
        let (from, to) = (memory.alloc(64, align), memory.alloc(64, align));
        memory.write(from, &bytes).expect("the allocation was made for these");
        let start = from.0.next_multiple_of(4) - from.0;
        let launch = Launch { kernel: "copy", grid: [1, 1, 1], block: [8, 1, 1], shared_bytes: 0 };
        let args = [from.offset(start).into(), to.offset(start).into(), 4_u64.into()];
        copy("b16").launch(&launch, &args, &memory).expect("nothing is wrong with it");
        for i in 0..8 {
            let at = start + 4 * i;
            assert_eq!(memory.read::<u16>(to.offset(at), 1), memory.read::<u16>(from.offset(at), 1), "{align}");
        }
        assert_eq!(memory.written(to), Ok(16));
    }
}

#[test]
fn bytes_and_halves_that_nobody_wrote_are_not_read() {
    for (ty, size) in [("b8", 1_u64), ("b16", 2)] {
        for unwritten in 0..4 / size {
            let mut memory = Memory::new();
            let (from, to) = (memory.alloc(4, 4), memory.alloc(4, 4));
            for byte in (0..4).filter(|byte| byte / size != unwritten) {
                memory.write(from.offset(byte), &[7_u8]).expect("the place is inside");
            }
            let threads = (4 / size) as u32;
            let launch = Launch { kernel: "copy", grid: [1, 1, 1], block: [threads, 1, 1], shared_bytes: 0 };
            let result = copy(ty).launch(&launch, &[from.into(), to.into(), size.into()], &memory);
            let Err(Error::Findings(report)) = result else { panic!("{ty} went unnoticed") };
            let (address, bytes) = (from.0 + unwritten * size, size as u32);
            assert_eq!(report.findings[0].fault, Fault::Uninitialised { space: Space::Global, address, bytes });
            assert_eq!(report.findings[0].thread, [unwritten as u32, 0, 0]);
        }
    }
}
