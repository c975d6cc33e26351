//! The arithmetic instructions of the kernels, one at a time on many operands: a GPU against the PTX machine.

use crate::device::OnGpu;
use anyhow::{Context, Result, ensure};
use half::f16;
use int_flash_attention::DType;
use int_flash_attention::driver::{Driver, Function, LaunchShape, StreamHandle};
use int_flash_attention_tests::values::Noise;
use ptx_machine::{Launch, Memory, Module};
use std::ffi::c_void;

/// How results of a GPU and of the machine may differ.
#[derive(Clone, Copy)]
enum Allowed {
    /// Not at all.
    Nothing,
    /// Not at all, but that a NaN's payload is open (PTX ISA, `abs` and `neg`).
    Payload,
    /// The same of the two float16 of the word.
    Payloads,
    /// By so much where the machine gives this, as float32.
    F32(fn(f64) -> f64),
    /// By so much where the machine gives this, in either float16 of the word.
    F16x2(fn(f64) -> f64),
    /// By so many units of 2^-24 of the sum of the magnitudes, which is the instruction's result without signs.
    Sum(f64),
}
use Allowed::{F16x2, F32, Nothing, Payload, Payloads, Sum};

/// What operands an instruction gets.
#[derive(Clone, Copy)]
enum Operands {
    /// Floats of all magnitudes, some special; words of any bits.
    Words,
    /// Finite float16 within 16 in magnitude, or float32.
    Halves,
}
use Operands::{Halves, Words};

/// Text, inputs and outputs of 32 bits each (`a0`.., `d0`..), operands, what may differ.
type Instruction = (&'static str, usize, usize, Operands, Allowed);

/// The machine's value of an approximate instruction is the exact one, rounded, and so is off by half a step; the rest is what
/// PTX promises. A result that one of them flushes to zero is at most the smallest normal number.
fn relative(value: f64, exponent: f64) -> f64 {
    let flushed = if value.abs() < 2.0 * f64::from(f32::MIN_POSITIVE) { f64::from(f32::MIN_POSITIVE) } else { 0.0 };
    value.abs() * exponent.exp2() + DType::F32.half_step(value) + flushed
}

/// 2^-22, of the value but between -1 and 1 of one.
fn logarithm(value: f64) -> f64 {
    (-22_f64).exp2() * value.abs().max(1.0) + DType::F32.half_step(value)
}

/// 2^-9.9; two roundings where the result is so small that a step is more than that.
fn half_exponential(value: f64) -> f64 {
    value * (-9.9_f64).exp2() + 2.0 * DType::F16.half_step(value)
}

/// 2^-11, of the value.
fn hyperbolic(value: f64) -> f64 {
    value.abs() * (-11_f64).exp2() + DType::F32.half_step(value)
}

/// 2^-10.987, whatever the value.
fn half_hyperbolic(value: f64) -> f64 {
    (-10.987_f64).exp2() + DType::F16.half_step(value)
}

const INSTRUCTIONS: &[Instruction] = &[
    ("add.rn.f32 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("sub.rn.f32 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("mul.rn.f32 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("fma.rn.f32 %d0, %a0, %a1, %a2;", 3, 1, Words, Nothing),
    ("div.rn.f32 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("min.f32 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("max.f32 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("abs.f32 %d0, %a0;", 1, 1, Words, Payload),
    ("neg.f32 %d0, %a0;", 1, 1, Words, Payload),
    ("cvt.rn.f32.u32 %d0, %a0;", 1, 1, Words, Nothing),
    ("cvt.rn.f16x2.f32 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("cvt.rn.bf16x2.f32 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("{ .reg .b16 h; cvt.rp.f16.f32 h, %a0; mov.b32 %d0, {h, h}; }", 1, 1, Words, Nothing),
    ("{ .reg .b16 l, h; mov.b32 {l, h}, %a0; cvt.f32.f16 %d0, l; cvt.f32.f16 %d1, h; }", 1, 2, Words, Nothing),
    ("fma.rn.f16x2 %d0, %a0, %a1, %a2;", 3, 1, Words, Nothing),
    ("fma.rn.relu.f16x2 %d0, %a0, %a1, %a2;", 3, 1, Words, Nothing),
    ("add.rn.f16x2 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("sub.f16x2 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("mul.rn.f16x2 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("min.f16x2 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("max.f16x2 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("neg.f16x2 %d0, %a0;", 1, 1, Words, Payloads),
    ("abs.f16x2 %d0, %a0;", 1, 1, Words, Payloads),
    ("popc.b32 %d0, %a0;", 1, 1, Words, Nothing),
    ("bfind.u32 %d0, %a0;", 1, 1, Words, Nothing),
    ("bfind.s32 %d0, %a0;", 1, 1, Words, Nothing),
    ("bfind.shiftamt.u32 %d0, %a0;", 1, 1, Words, Nothing),
    // The base is a bit's number, and offsets to either side of it.
    ("{ .reg .b32 b, o; bfe.u32 b, %a1, 0, 5; bfe.s32 o, %a2, 0, 6; fns.b32 %d0, %a0, b, o; }", 3, 1, Words, Nothing),
    ("prmt.b32 %d0, %a0, %a1, %a2;", 3, 1, Words, Nothing),
    ("shfl.sync.bfly.b32 %d0, %a0, 2, 31, -1;", 1, 1, Words, Nothing),
    ("shfl.sync.idx.b32 %d0, %a0, %a1, 0x1807, -1;", 2, 1, Words, Nothing),
    ("shfl.sync.up.b32 %d0, %a0, 5, 0, -1;", 1, 1, Words, Nothing),
    ("shfl.sync.down.b32 %d0, %a0, 3, 0x1807, -1;", 1, 1, Words, Nothing),
    (
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 \
         {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%a4, %a5}, {%a6, %a7, %a8, %a9};",
        10,
        4,
        Words,
        Nothing,
    ),
    (
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 \
         {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%a4, %a5}, {%a6, %a7, %a8, %a9};",
        10,
        4,
        Words,
        Nothing,
    ),
    // 16 products and an accumulator: the same share of a unit for each as in `baseline::expected`.
    (
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 \
         {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%a4, %a5}, {%a6, %a7, %a8, %a9};",
        10,
        4,
        Halves,
        Sum(18.0),
    ),
    ("ex2.approx.ftz.f32 %d0, %a0;", 1, 1, Words, F32(|value| relative(value, -22.0))),
    ("rcp.approx.ftz.f32 %d0, %a0;", 1, 1, Words, F32(|value| relative(value, -23.0))),
    ("lg2.approx.ftz.f32 %d0, %a0;", 1, 1, Words, F32(logarithm)),
    ("ex2.approx.f16x2 %d0, %a0;", 1, 1, Words, F16x2(half_exponential)),
    ("tanh.approx.f32 %d0, %a0;", 1, 1, Words, F32(hyperbolic)),
    ("tanh.approx.f16x2 %d0, %a0;", 1, 1, Words, F16x2(half_hyperbolic)),
];

/// What devices have from compute capability 9.0 on.
const HOPPER: &[Instruction] = &[
    ("add.s16x2 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("min.s16x2 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("max.s16x2 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("min.u16x2 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    ("max.u16x2 %d0, %a0, %a1;", 2, 1, Words, Nothing),
    // What ptxas makes one instruction of.
    ("{ .reg .b32 s; add.s16x2 s, %a0, %a1; max.s16x2 %d0, s, %a2; }", 3, 1, Words, Nothing),
];

/// Threads of each instruction's launch, in whole blocks: more than there are float16.
const THREADS: usize = 1 << 18;
const BLOCK: usize = 128;

/// Every instruction on both.
pub fn instructions(gpu: &OnGpu) -> Result<()> {
    let hopper: &[Instruction] = if gpu.gpu.compute_capability() >= (9, 0) { HOPPER } else { &[] };
    let every = INSTRUCTIONS.iter().map(|instruction| (["7.0", "sm_80"], instruction));
    let every = every.chain(hopper.iter().map(|instruction| (["8.0", "sm_90"], instruction)));
    let compared = every.map(|(target, instruction)| compare(gpu, target, instruction));
    let differ: Vec<String> = compared.filter_map(|result| Some(format!("{:#}", result.err()?))).collect();
    ensure!(differ.is_empty(), "{}", differ.join("\n"));
    Ok(())
}

fn compare(gpu: &OnGpu, target: [&str; 2], &(text, inputs, outputs, operands, allowed): &Instruction) -> Result<()> {
    let plain = |part: &&str| [".reg", "mov.", "bfe."].iter().all(|helper| !part.contains(helper));
    let name = text.split(';').find(plain).and_then(|part| part.trim().split(' ').next()).unwrap_or(text);
    let ptx = ptx(target, text, inputs, outputs);
    let words: Vec<u32> = (0..inputs * THREADS).map(|i| word(operands, i / THREADS, i % THREADS)).collect();
    let want = on_machine(&ptx, &words, outputs)?;
    let got = on_gpu(gpu, &ptx, &words, outputs).with_context(|| name.to_owned())?;
    let magnitude = if matches!(allowed, Sum(_)) {
        let unsigned: Vec<u32> = words.iter().enumerate().map(|(i, word)| without_signs(i, *word)).collect();
        on_machine(&ptx, &unsigned, outputs)?
    } else {
        want.clone()
    };
    let (mut different, mut largest) = (0, 0.0_f64);
    for (i, ((&got, &want), &magnitude)) in got.iter().zip(&want).zip(&magnitude).enumerate() {
        let share = share(allowed, got, want, magnitude);
        ensure!(
            // a share that is no number is none that is allowed
            share <= 1.0,
            "{name} of {:x?}: {got:#x} on the GPU, {want:#x} on the machine, {share} of what is allowed",
            words.iter().skip(i % THREADS).step_by(THREADS).collect::<Vec<_>>()
        );
        different += usize::from(got != want);
        largest = largest.max(share);
    }
    let how = match (different, allowed) {
        (0, _) => "all the same bits".to_owned(),
        (_, Payload | Payloads) => format!("all the same but for the payloads of {different} NaNs"),
        _ => format!("{different} differ, by {largest:.3} of what is allowed at most"),
    };
    println!("GPU and PTX machine, {name}: {} results, {how}", got.len());
    Ok(())
}

/// A kernel in which thread `t` of `n` computes `out[m n + t]` from `in[k n + t]`.
fn ptx([version, target]: [&str; 2], text: &str, inputs: usize, outputs: usize) -> String {
    let mut body = String::new();
    for i in 0..inputs {
        body += &format!("ld.global.b32 %a{i}, [%from + {}];\n", 4 * i * THREADS);
    }
    body += text;
    for i in 0..outputs {
        body += &format!("\nst.global.b32 [%to + {}], %d{i};", 4 * i * THREADS);
    }
    format!(
        ".version {version}\n.target {target}\n.address_size 64\n\
         .visible .entry instruction(.param .u64 in, .param .u64 out)\n{{\n\
         .reg .b32 %a<{inputs}>, %d<{outputs}>, %t<3>;\n.reg .b64 %from, %to, %offset;\n\
         ld.param.u64 %from, [in];\nld.param.u64 %to, [out];\n\
         mov.u32 %t0, %tid.x;\nmov.u32 %t1, %ctaid.x;\nmad.lo.s32 %t2, %t1, {BLOCK}, %t0;\n\
         mul.wide.u32 %offset, %t2, 4;\nadd.s64 %from, %from, %offset;\nadd.s64 %to, %to, %offset;\n\
         {body}\nret;\n}}\n"
    )
}

/// Operand `operand` of thread `thread`.
fn word(operands: Operands, operand: usize, thread: usize) -> u32 {
    let bits = Noise::new(9, [operand, thread, 0, 0]).word();
    match operands {
        // a and b: exponents 2^-12 to 2^3; c: 2^-8 to 2^7
        Halves if operand < 6 => {
            let half = |bits: u32| (bits & 0x83ff) | (3 + (bits >> 10) % 16) << 10;
            half(bits & 0xffff) | half(bits >> 16) << 16
        }
        Halves => (bits & 0x807f_ffff) | (119 + (bits >> 23) % 16) << 23,
        // all float16 once in the low half, among any in the high half
        Words if thread < 1 << 16 => (bits & 0xffff_0000) | thread as u32,
        Words => match thread % 4 {
            0 => SPECIAL[bits as usize % SPECIAL.len()],
            1 => (bits & 0x807f_ffff) | (111 + (bits >> 23) % 32) << 23,
            2 => (bits & 0x807f_ffff) | (63 + (bits >> 23) % 128) << 23,
            _ => bits,
        },
    }
}

/// Zeros, ones, the ends of float32's and float16's ranges, infinities, no numbers.
const SPECIAL: [u32; 20] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    1,
    0x8000_0001,
    0x007f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffff_ffff,
    0x477f_f000,
    0x477f_efff,
    0x3380_0000,
    0x3300_0000,
    0x7c00_fc00,
    0x7bff_0001,
];

/// An operand of the float16 `mma` without its signs: A and B hold two float16, the accumulator one float32.
fn without_signs(index: usize, word: u32) -> u32 {
    word & if index / THREADS < 6 { 0x7fff_7fff } else { 0x7fff_ffff }
}

/// A difference as a share of what is allowed.
fn share(allowed: Allowed, got: u32, want: u32, magnitude: u32) -> f64 {
    let single = |bits: u32| f64::from(f32::from_bits(bits));
    let of = |got: f64, want: f64, allowed: f64| {
        if got == want || got.is_nan() && want.is_nan() { 0.0 } else { (got - want).abs() / allowed }
    };
    let float = |allowed: f64| of(single(got), single(want), allowed);
    match allowed {
        _ if got == want => 0.0,
        Nothing => f64::INFINITY,
        Payload if single(got).is_nan() && single(want).is_nan() => 0.0,
        Payload => f64::INFINITY,
        Payloads => {
            let halves = |word: u32| [word as u16, (word >> 16) as u16].map(f16::from_bits);
            let same = |(got, want): (f16, f16)| got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
            if halves(got).into_iter().zip(halves(want)).all(same) { 0.0 } else { f64::INFINITY }
        }
        F32(bound) => float(bound(single(want))),
        Sum(units) => float(units * (-24_f64).exp2() * single(magnitude)),
        F16x2(bound) => {
            let halves = |word: u32| [word as u16, (word >> 16) as u16].map(|bits| f64::from(f16::from_bits(bits)));
            let ([a, b], [c, d]) = (halves(got), halves(want));
            of(a, c, bound(c)).max(of(b, d, bound(d)))
        }
    }
}

fn on_machine(ptx: &str, words: &[u32], outputs: usize) -> Result<Vec<u32>> {
    let mut memory = Memory::new();
    let (input, output) = (memory.alloc_from(words), memory.alloc(4 * (outputs * THREADS) as u64, 256));
    let (grid, block) = ([(THREADS / BLOCK) as u32, 1, 1], [BLOCK as u32, 1, 1]);
    let launch = Launch { kernel: "instruction", grid, block, shared_bytes: 0 };
    Module::load(ptx)?.launch(&launch, &[input.into(), output.into()], &memory)?;
    Ok(memory.read(output, outputs * THREADS)?)
}

fn on_gpu(gpu: &OnGpu, ptx: &str, words: &[u32], outputs: usize) -> Result<Vec<u32>> {
    let gpu = &gpu.gpu;
    let (input, output) = (gpu.upload(words)?, gpu.alloc::<u32>(outputs * THREADS)?);
    // making the buffers has made the context current on this thread
    let driver = Driver::load()?;
    let (module, _) = driver.load_module(ptx)?;
    // SAFETY: the module is loaded.
    let launched = unsafe { driver.function(module, "instruction") }
        .and_then(|function| launch(driver, function, [input.ptr(), output.ptr()]));
    // SAFETY: the launch is done, and the function not used any more.
    unsafe { driver.unload_module(module) }?;
    launched?;
    Ok(output.to_vec()?)
}

/// Launches the kernel of [`ptx`] and waits for it.
fn launch(
    driver: Driver,
    function: Function,
    mut buffers: [u64; 2],
) -> std::result::Result<(), int_flash_attention::DriverError> {
    let mut arguments = [std::ptr::null_mut::<c_void>(); 2];
    for (argument, buffer) in arguments.iter_mut().zip(&mut buffers) {
        *argument = std::ptr::from_mut(buffer).cast();
    }
    let (grid, block) = ([(THREADS / BLOCK) as u32, 1, 1], [BLOCK as u32, 1, 1]);
    let shape = LaunchShape { grid, block, shared_bytes: 0 };
    // SAFETY: two pointers, to buffers of as many words as there are threads times inputs and outputs.
    unsafe { driver.launch(function, shape, StreamHandle::NULL, &mut arguments) }?;
    driver.synchronize()
}
