//! Runs a few instructions on one warp.

use ptx_machine::{Error, Launch, Memory, Module};

/// A value for each lane.
pub type Lanes = [u32; 32];

/// A kernel around `body`, which finds `%a`, `%b`, `%c` and the lane's number `%t`, and leaves its result in `%d`.
///
/// There are also `%r`, `%f` (32 bits), `%h` (16 bits), `%l` (64 bits), `%p` (predicates), eight of each, and 1 KiB of
/// shared memory at `tile`.
pub fn kernel(body: &str) -> String {
    format!(
        ".version 7.0
         .target sm_80
         .address_size 64
         .visible .entry test(.param .u64 .ptr .align 4 in, .param .u64 .ptr .align 4 out)
         {{
         .reg .pred %p<8>;
         .reg .b16 %h<8>;
         .reg .b32 %r<8>, %f<8>, %a, %b, %c, %d, %t;
         .reg .b64 %l<8>, %in, %out, %at;
         .shared .align 16 .b8 tile[1024];
         ld.param.b64 %in, [in];
         ld.param.b64 %out, [out];
         mov.u32 %t, %tid.x;
         mul.wide.u32 %at, %t, 4;
         add.s64 %in, %in, %at;
         add.s64 %out, %out, %at;
         ld.global.b32 %a, [%in];
         ld.global.b32 %b, [%in+128];
         ld.global.b32 %c, [%in+256];
         {body}
         st.global.b32 [%out], %d;
         ret;
         }}"
    )
}

/// The same kernel, for a device that knows everything.
pub fn hopper_kernel(body: &str) -> String {
    kernel(body).replacen("7.0", "8.4", 1).replacen("sm_80", "sm_90a", 1)
}

/// What `body` leaves in `%d` of a [`hopper_kernel`].
pub fn run_hopper(body: &str, inputs: [Lanes; 3]) -> Lanes {
    try_run_kernel(&hopper_kernel(body), inputs).unwrap_or_else(|error| panic!("{error}"))
}

/// What `body` leaves in `%d`, or why it cannot.
pub fn try_run(body: &str, inputs: [Lanes; 3]) -> Result<Lanes, Error> {
    try_run_kernel(&kernel(body), inputs)
}

fn try_run_kernel(ptx: &str, inputs: [Lanes; 3]) -> Result<Lanes, Error> {
    let module = Module::load(ptx)?;
    let mut memory = Memory::new();
    let input = memory.alloc_from(&inputs.concat());
    let output = memory.alloc(128, 4);
    let launch = Launch { kernel: "test", grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
    module.launch(&launch, &[input.into(), output.into()], &memory)?;
    let values = memory.read(output, 32)?;
    Ok(std::array::from_fn(|lane| values[lane]))
}

/// What `body` leaves in `%d`.
pub fn run(body: &str, inputs: [Lanes; 3]) -> Lanes {
    try_run(body, inputs).unwrap_or_else(|error| panic!("{error}"))
}

/// What `body` makes of the same inputs in every lane.
pub fn run_one(body: &str, [a, b, c]: [u32; 3]) -> u32 {
    let out = run(body, [[a; 32], [b; 32], [c; 32]]);
    assert!(out.iter().all(|value| *value == out[0]), "lanes with the same inputs disagree");
    out[0]
}

/// Checks `body` against `expected` lane by lane.
pub fn check(body: &str, inputs: [Lanes; 3], expected: impl Fn(u32, u32, u32) -> u32) {
    compare(body, inputs, run(body, inputs), expected);
}

/// The same of a [`hopper_kernel`].
pub fn check_hopper(body: &str, inputs: [Lanes; 3], expected: impl Fn(u32, u32, u32) -> u32) {
    compare(body, inputs, run_hopper(body, inputs), expected);
}

fn compare(body: &str, inputs: [Lanes; 3], got: Lanes, expected: impl Fn(u32, u32, u32) -> u32) {
    let [a, b, c] = inputs;
    for lane in 0..32 {
        let want = expected(a[lane], b[lane], c[lane]);
        let (a, b, c, got) = (a[lane], b[lane], c[lane], got[lane]);
        assert_eq!(got, want, "{body} of {a:#x}, {b:#x}, {c:#x}: {got:#x} instead of {want:#x}");
    }
}

/// Numbers of every size, with the corners first.
pub fn mixed(seed: u32) -> Lanes {
    const CORNERS: [u32; 8] = [0, 1, u32::MAX, 0x8000_0000, 0x7fff_ffff, 31, 32, 0xff];
    std::array::from_fn(|lane| {
        let lane = lane as u32;
        let mut x = (lane + 1).wrapping_mul(0x9e37_79b9) ^ seed.wrapping_mul(0x85eb_ca6b);
        x = (x ^ x >> 15).wrapping_mul(0x2c1b_3c6d);
        x = (x ^ x >> 12).wrapping_mul(0x297a_2d39) ^ x >> 15;
        if (lane + seed).is_multiple_of(4) { CORNERS[((lane + seed) / 4 % 8) as usize] } else { x >> (x % 29) }
    })
}
