//! `wgmma` on operands that a bulk copy has brought, against plain matrices laid out as the manual draws them.

use crate::harness::mixed;
use ptx_machine::{Launch, Memory, Module};
use std::fmt::Write;

/// Rows of the product of a warpgroup.
const ROWS: usize = 64;
/// Depth of one instruction.
const STEP: usize = 32;

/// How a matrix lies in shared memory: rows of `row` bytes in groups of eight, swizzled unless a row has 16.
#[derive(Clone, Copy)]
struct Layout {
    row: usize,
    code: u64,
}

const LAYOUTS: [Layout; 4] = [
    Layout { row: 16, code: 0 },
    Layout { row: 32, code: 3 },
    Layout { row: 64, code: 2 },
    Layout { row: 128, code: 1 },
];

impl Layout {
    /// The depth that one tile holds.
    fn depth(self) -> usize {
        self.row.max(STEP)
    }

    /// Where an element lies, from the start of the matrix. Without a swizzle the second half of a row lies `LEADING`
    /// bytes further, between the groups of rows.
    fn place(self, row: usize, k: usize) -> usize {
        if self.row == 16 {
            return row / 8 * 256 + row % 8 * 16 + k / 16 * 128 + k % 16;
        }
        let chunk = (k / 16) ^ (row % 8 * self.row / 128);
        row * self.row + chunk * 16 + k % 16
    }

    /// The descriptor of one step of a matrix, less the address of `tile`.
    fn descriptor(self, address: usize, step: usize) -> u64 {
        let field = |bytes: usize| bytes as u64 >> 4;
        let (leading, stride) = if self.row == 16 { (128, 256) } else { (0, 8 * self.row) };
        field(address + step * STEP) | field(leading) << 16 | field(stride) << 32 | self.code << 62
    }
}

/// Random bytes, as `count` rows of `depth`.
fn matrix(seed: u32, rows: usize, depth: usize) -> Vec<Vec<u8>> {
    let byte = |i: usize| mixed(seed + i as u32)[i % 32].wrapping_mul(0x9e37_79b1) >> 24;
    (0..rows).map(|r| (0..depth).map(|k| byte(r * depth + k) as u8).collect()).collect()
}

fn value(byte: u8, ty: &str) -> i32 {
    if ty == "s8" { i32::from(byte as i8) } else { byte.into() }
}

/// One product.
#[derive(Clone, Copy)]
struct Case {
    columns: usize,
    layout: Layout,
    types: [&'static str; 2],
    registers: bool,
    accumulate: bool,
}

impl Case {
    fn address_of_b(self) -> usize {
        ROWS * self.layout.depth()
    }

    fn shared_bytes(self) -> usize {
        self.address_of_b() + self.columns * self.layout.depth()
    }

    /// A kernel that copies a prepared image to shared memory, multiplies, and stores the accumulators.
    fn ptx(self) -> String {
        let Self { columns, layout, types: [a_ty, b_ty], registers, accumulate } = self;
        let count = columns / 2;
        let bytes = self.shared_bytes();
        let list = |name: &str, n: usize| (0..n).map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(",");
        let (mut loads, mut products, mut stores) = (String::new(), String::new(), String::new());
        for i in 0..count {
            writeln!(loads, "ld.global.b32 %d{i}, [%sums+{}];", 4 * i).expect("strings take everything");
            writeln!(stores, "st.global.b32 [%sums+{}], %d{i};", 4 * i).expect("strings take everything");
        }
        for step in 0..layout.depth() / STEP {
            let a = if registers {
                let at = |i| 16 * step + 4 * i;
                for i in 0..4 {
                    writeln!(loads, "ld.global.b32 %a{}, [%rows+{}];", 4 * step + i, at(i)).expect("as above");
                }
                format!("{{%a{},%a{},%a{},%a{}}}", 4 * step, 4 * step + 1, 4 * step + 2, 4 * step + 3)
            } else {
                let a = layout.descriptor(0, step);
                writeln!(loads, "add.s64 %rows{step}, %tile, {a:#x};").expect("as above");
                format!("%rows{step}")
            };
            let b = layout.descriptor(self.address_of_b(), step);
            writeln!(loads, "add.s64 %columns{step}, %tile, {b:#x};").expect("as above");
            let scale = if step == 0 && !accumulate { "%none" } else { "%all" };
            writeln!(
                products,
                "wgmma.mma_async.sync.aligned.m64n{columns}k32.s32.{a_ty}.{b_ty} {{{}}}, {a}, %columns{step}, {scale};",
                list("d", count)
            )
            .expect("as above");
        }
        format!(
            ".version 8.4
             .target sm_90a
             .address_size 64
             .extern .shared .align 1024 .b8 tile[];
             .visible .entry product(.param .u64 .ptr .align 16 image, .param .u64 .ptr .align 16 rows,
                                     .param .u64 .ptr .align 4 sums) .maxntid 128
             {{
             .reg .pred %p, %first, %all, %none;
             .reg .b32 %t, %at, %a<16>, %d<128>;
             .reg .b64 %image, %rows, %sums, %offset, %tile, %rows<4>, %columns<4>;
             ld.param.b64 %image, [image];
             ld.param.b64 %rows, [rows];
             ld.param.b64 %sums, [sums];
             mov.u32 %t, %tid.x;
             setp.eq.u32 %first, %t, 0;
             setp.eq.u32 %all, %t, %t;
             setp.ne.u32 %none, %t, %t;
             mul.wide.u32 %offset, %t, {row_bytes};
             add.s64 %rows, %rows, %offset;
             mul.wide.u32 %offset, %t, {sum_bytes};
             add.s64 %sums, %sums, %offset;
             mov.u32 %at, tile;
             cvt.u64.u32 %tile, %at;
             shr.u64 %tile, %tile, 4;
             @%first mbarrier.init.shared::cta.b64 [%at+{bytes}], 1;
             @%first fence.mbarrier_init.release.cluster;
             bar.sync 0;
             @!%first bra WAIT;
             mbarrier.arrive.expect_tx.shared::cta.b64 _, [%at+{bytes}], {bytes};
             cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%at], [%image], {bytes}, [%at+{bytes}];
             WAIT:
             mbarrier.try_wait.parity.shared::cta.b64 %p, [%at+{bytes}], 0;
             @!%p bra WAIT;
             {loads}
             wgmma.fence.sync.aligned;
             {products}
             wgmma.commit_group.sync.aligned;
             wgmma.wait_group.sync.aligned 0;
             {stores}
             ret;
             }}",
            row_bytes = layout.depth() / 2,
            sum_bytes = 4 * count,
        )
    }

    /// Where the manual puts accumulator `i` of a thread: row and column.
    fn place(thread: usize, i: usize) -> (usize, usize) {
        let (warp, lane) = (thread / 32, thread % 32);
        (16 * warp + lane / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (lane % 4) + i % 2)
    }

    fn check(self) {
        let Self { columns, layout, types: [a_ty, b_ty], .. } = self;
        let depth = layout.depth();
        let (a, b) = (matrix(1, ROWS, depth), matrix(2, columns, depth));
        let mut image = vec![0_u8; self.shared_bytes()];
        for k in 0..depth {
            for (row, values) in a.iter().enumerate() {
                image[layout.place(row, k)] = values[k];
            }
            for (column, values) in b.iter().enumerate() {
                image[self.address_of_b() + layout.place(column, k)] = values[k];
            }
        }
        let mut fragments = Vec::new();
        for thread in 0..128 {
            let row = 16 * (thread / 32) + thread % 32 / 4;
            for register in 0..depth / 8 {
                let k = 32 * (register / 4) + 16 * (register / 2 % 2) + 4 * (thread % 4);
                fragments.extend_from_slice(&a[row + 8 * (register % 2)][k..k + 4]);
            }
        }
        let before: Vec<i32> = (0..128 * columns as i32 / 2).map(|i| i.wrapping_mul(0x0123_4567)).collect();
        let mut memory = Memory::new();
        let (image, fragments) = (memory.alloc_from(&image), memory.alloc_from(&fragments));
        let sums = memory.alloc_from(&before);
        let module = Module::load(&self.ptx()).unwrap_or_else(|error| panic!("{error}"));
        let shared_bytes = self.shared_bytes() as u32 + 8;
        let launch = Launch { kernel: "product", grid: [1, 1, 1], block: [128, 1, 1], shared_bytes };
        let args = [image.into(), fragments.into(), sums.into()];
        module.launch(&launch, &args, &memory).unwrap_or_else(|error| panic!("{error}"));
        let after = memory.read::<i32>(sums, before.len()).expect("the kernel wrote it");
        for (at, (before, after)) in before.iter().zip(&after).enumerate() {
            let (row, column) = Self::place(at / (columns / 2), at % (columns / 2));
            let product = |k: usize| value(a[row][k], a_ty) * value(b[column][k], b_ty);
            let start = if self.accumulate { *before } else { 0 };
            let wanted = (0..depth).map(product).fold(start, i32::wrapping_add);
            assert_eq!(*after, wanted, "n {columns}, rows of {}, {a_ty} {b_ty}: {row} {column}", layout.row);
        }
    }
}

#[test]
fn every_swizzle_and_type() {
    for layout in LAYOUTS {
        for columns in [8, 64, 128] {
            for types in [["s8", "s8"], ["u8", "s8"], ["s8", "u8"], ["u8", "u8"]] {
                let registers = columns == 64;
                Case { columns, layout, types, registers, accumulate: types[0] == types[1] }.check();
            }
        }
    }
}

#[test]
fn the_widest_product_from_registers_and_from_memory() {
    for registers in [false, true] {
        Case { columns: 256, layout: LAYOUTS[3], types: ["u8", "s8"], registers, accumulate: true }.check();
    }
}
