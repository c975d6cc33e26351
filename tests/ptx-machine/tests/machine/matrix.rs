//! `ldmatrix` and `mma`, against plain matrices laid out as the manual draws them.

use crate::harness::{Lanes, kernel, mixed};
use half::{bf16, f16};
use ptx_machine::{Launch, Memory, Module};

/// Runs `body` with `count` registers of input at `%r0…`, and returns the registers `%d0…%d3`.
fn fragments(body: &str, inputs: &[Lanes]) -> [Lanes; 4] {
    let loads: String = (0..inputs.len()).map(|i| format!("ld.global.b32 %i{i}, [%in+{}];", 128 * i)).collect();
    let stores: String = (1..4).map(|i| format!("st.global.b32 [%out+{}], %d{i};", 128 * i)).collect();
    let text = format!(".reg .b32 %i<16>, %d<4>; {loads} {body} {stores} mov.b32 %d, %d0;");
    let module = Module::load(&kernel(&text)).unwrap_or_else(|error| panic!("{error}"));
    let mut memory = Memory::new();
    let mut values = inputs.concat();
    values.resize(values.len().max(96), 0);
    let (input, output) = (memory.alloc_from(&values), memory.alloc(512, 4));
    let launch = Launch { kernel: "test", grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 0 };
    module.launch(&launch, &[input.into(), output.into()], &memory).unwrap_or_else(|error| panic!("{error}"));
    let out = memory.read::<u32>(output, 128).expect("the kernel wrote it");
    std::array::from_fn(|r| std::array::from_fn(|lane| out[32 * r + lane]))
}

fn inputs(count: u32) -> Vec<Lanes> {
    (0..count).map(|seed| mixed(seed + 20).map(|word| word.wrapping_mul(0x9e37_79b1) ^ word >> 7)).collect()
}

/// "Matrix Fragments for mma.m16n8k32", `.s8` and `.u8`.
#[test]
fn bytes_m16n8k32() {
    let given = inputs(10);
    for (a_ty, b_ty) in [("s8", "s8"), ("u8", "s8"), ("s8", "u8"), ("u8", "u8")] {
        let body = format!(
            "mma.sync.aligned.m16n8k32.row.col.s32.{a_ty}.{b_ty}.s32
             {{%d0,%d1,%d2,%d3}}, {{%i0,%i1,%i2,%i3}}, {{%i4,%i5}}, {{%i6,%i7,%i8,%i9}};"
        );
        let byte = |register: usize, lane: usize, i: usize, ty: &str| {
            let byte = (given[register][lane] >> (8 * i)) as u8;
            if ty == "s8" { i32::from(byte as i8) } else { byte.into() }
        };
        let (mut a, mut b) = ([[0; 32]; 16], [[0; 8]; 32]);
        for lane in 0..32 {
            let (group, thread) = (lane >> 2, lane % 4);
            for i in 0..16 {
                let row = if i < 4 || (8..12).contains(&i) { group } else { group + 8 };
                let column = if i < 8 { thread * 4 + (i & 3) } else { thread * 4 + (i & 3) + 16 };
                a[row][column] = byte(i / 4, lane, i % 4, a_ty);
            }
            for i in 0..8 {
                let row = if i < 4 { thread * 4 + (i & 3) } else { thread * 4 + (i & 3) + 16 };
                b[row][group] = byte(4 + i / 4, lane, i % 4, b_ty);
            }
        }
        let out = fragments(&body, &given);
        for lane in 0..32 {
            let (group, thread) = (lane >> 2, lane % 4);
            for i in 0..4 {
                let (row, column) = (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1));
                let sum: i32 = (0..32).map(|k| a[row][k] * b[k][column]).sum();
                assert_eq!(out[i][lane], given[6 + i][lane].wrapping_add(sum as u32), "{a_ty} {b_ty} {row} {column}");
            }
        }
    }
}

/// "Matrix Fragments for mma.m16n8k16 with floating point type".
#[test]
fn halves_m16n8k16() {
    for ty in ["f16", "bf16"] {
        let small = |word: u32| {
            let x = |bits: u32| (bits % 97) as f32 / 8.0 - 6.0;
            let bits = |x: f32| if ty == "f16" { f16::from_f32(x).to_bits() } else { bf16::from_f32(x).to_bits() };
            u32::from(bits(x(word))) | u32::from(bits(x(word >> 16))) << 16
        };
        let mut given: Vec<Lanes> = inputs(6).into_iter().map(|lanes| lanes.map(small)).collect();
        given.extend(inputs(4).into_iter().map(|lanes| lanes.map(|word| ((word % 1000) as f32).to_bits())));
        let value = |register: usize, lane: usize, i: usize| {
            let bits = (given[register][lane] >> (16 * i)) as u16;
            if ty == "f16" { f16::from_bits(bits).to_f64() } else { bf16::from_bits(bits).to_f64() }
        };
        let (mut a, mut b) = ([[0.0; 16]; 16], [[0.0; 8]; 16]);
        for lane in 0..32 {
            let (group, thread) = (lane >> 2, lane % 4);
            for i in 0..8 {
                let row = if matches!(i, 0 | 1 | 4 | 5) { group } else { group + 8 };
                let column = if i < 4 { thread * 2 + (i & 1) } else { thread * 2 + (i & 1) + 8 };
                a[row][column] = value(i / 2, lane, i % 2);
            }
            for i in 0..4 {
                let row = if i < 2 { thread * 2 + (i & 1) } else { thread * 2 + (i & 1) + 8 };
                b[row][group] = value(4 + i / 2, lane, i % 2);
            }
        }
        let body = format!(
            "mma.sync.aligned.m16n8k16.row.col.f32.{ty}.{ty}.f32
             {{%d0,%d1,%d2,%d3}}, {{%i0,%i1,%i2,%i3}}, {{%i4,%i5}}, {{%i6,%i7,%i8,%i9}};"
        );
        let out = fragments(&body, &given);
        for lane in 0..32 {
            let (group, thread) = (lane >> 2, lane % 4);
            for i in 0..4 {
                let (row, column) = (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1));
                let sum: f64 = (0..16).map(|k| a[row][k] * b[k][column]).sum();
                let want = (f64::from(f32::from_bits(given[6 + i][lane])) + sum) as f32;
                assert_eq!(f32::from_bits(out[i][lane]), want, "{ty} {row} {column}");
            }
        }
    }
}

/// Stores the rows of four matrices, lane by lane, and loads them back as fragments.
#[test]
fn ldmatrix_plain_and_transposed() {
    let given = inputs(4);
    let half =
        |matrix: usize, row: usize, column: usize| given[column / 2][8 * matrix + row] >> (16 * (column % 2)) & 0xffff;
    let store = "mov.u32 %r0, tile; shl.b32 %r1, %t, 4; add.s32 %r0, %r0, %r1;
                 st.shared.v4.b32 [%r0], {%i0,%i1,%i2,%i3}; bar.sync 0;";
    let load = |trans: &str| {
        let body = format!("{store} ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%d0,%d1,%d2,%d3}}, [%r0];");
        fragments(&body, &given)
    };
    let (plain, transposed) = (load(""), load(".trans"));
    for matrix in 0..4 {
        for lane in 0..32 {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            let pair = |low: u32, high: u32| high << 16 | low;
            assert_eq!(plain[matrix][lane], pair(half(matrix, row, column), half(matrix, row, column + 1)));
            assert_eq!(transposed[matrix][lane], pair(half(matrix, column, row), half(matrix, column + 1, row)));
        }
    }
}
