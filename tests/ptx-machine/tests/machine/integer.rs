//! Integer arithmetic, logic and bit fields.

use crate::harness::{check, check_hopper, mixed, run_one};

fn inputs() -> [[u32; 32]; 3] {
    [mixed(1), mixed(2), mixed(3)]
}

#[test]
fn arithmetic() {
    check("add.s32 %d, %a, %b;", inputs(), |a, b, _| a.wrapping_add(b));
    check("sub.s32 %d, %a, %b;", inputs(), |a, b, _| a.wrapping_sub(b));
    check("mul.lo.s32 %d, %a, %b;", inputs(), |a, b, _| a.wrapping_mul(b));
    check("mul.hi.u32 %d, %a, %b;", inputs(), |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    let high = |a: u32, b: u32| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32;
    check("mul.hi.s32 %d, %a, %b;", inputs(), |a, b, _| high(a, b));
    check("mad.lo.s32 %d, %a, %b, %c;", inputs(), |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check("mad.hi.s32 %d, %a, %b, %c;", inputs(), |a, b, c| high(a, b).wrapping_add(c));
    check("div.u32 %d, %a, %b;", inputs(), |a, b, _| a.checked_div(b).unwrap_or(u32::MAX));
    check("rem.u32 %d, %a, %b;", inputs(), |a, b, _| a.checked_rem(b).unwrap_or(a));
    let signed = |a: u32, b: u32| if b == 0 { u32::MAX } else { (a as i32).wrapping_div(b as i32) as u32 };
    check("div.s32 %d, %a, %b;", inputs(), |a, b, _| signed(a, b));
    check("neg.s32 %d, %a;", inputs(), |a, _, _| a.wrapping_neg());
    check("abs.s32 %d, %a;", inputs(), |a, _, _| (a as i32).wrapping_abs() as u32);
    check("min.s32 %d, %a, %b;", inputs(), |a, b, _| (a as i32).min(b as i32) as u32);
    check("max.u32 %d, %a, %b;", inputs(), |a, b, _| a.max(b));
}

#[test]
fn logic_and_shifts() {
    check("and.b32 %d, %a, %b;", inputs(), |a, b, _| a & b);
    check("or.b32 %d, %a, %b;", inputs(), |a, b, _| a | b);
    check("xor.b32 %d, %a, %b;", inputs(), |a, b, _| a ^ b);
    check("not.b32 %d, %a;", inputs(), |a, _, _| !a);
    check("shl.b32 %d, %a, %b;", inputs(), |a, b, _| a.checked_shl(b).unwrap_or(0));
    check("shr.u32 %d, %a, %b;", inputs(), |a, b, _| a.checked_shr(b).unwrap_or(0));
    check("shr.s32 %d, %a, %b;", inputs(), |a, b, _| (a as i32 >> b.min(31)) as u32);
    check("popc.b32 %d, %a;", inputs(), |a, _, _| a.count_ones());
    check("clz.b32 %d, %a;", inputs(), |a, _, _| a.leading_zeros());
    check("brev.b32 %d, %a;", inputs(), |a, _, _| a.reverse_bits());
    check("shf.l.wrap.b32 %d, %a, %b, %c;", inputs(), |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32
    });
    check("shf.r.clamp.b32 %d, %a, %b, %c;", inputs(), |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32
    });
}

#[test]
fn sixty_four_bits() {
    let wide = "mov.b64 %l0, {%a, %b}; mov.b64 %l1, {%b, %c};";
    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let both = |value: u64| value as u32 ^ (value >> 32) as u32;
    let fold = "mov.b64 {%r0, %r1}, %l2; xor.b32 %d, %r0, %r1;";
    let case = |op: &str, f: &dyn Fn(u64, u64) -> u64| {
        check(&format!("{wide} {op} {fold}"), inputs(), |a, b, c| both(f(pair(a, b), pair(b, c))));
    };
    case("add.s64 %l2, %l0, %l1;", &|x, y| x.wrapping_add(y));
    case("mul.lo.s64 %l2, %l0, %l1;", &|x, y| x.wrapping_mul(y));
    case("mul.hi.u64 %l2, %l0, %l1;", &|x, y| ((u128::from(x) * u128::from(y)) >> 64) as u64);
    case("div.s64 %l2, %l0, %l1;", &|x, y| if y == 0 { u64::MAX } else { (x as i64).wrapping_div(y as i64) as u64 });
    case("min.s64 %l2, %l0, %l1;", &|x, y| (x as i64).min(y as i64) as u64);
    case("shr.u64 %l2, %l0, %c;", &|x, y| x.checked_shr((y >> 32) as u32).unwrap_or(0));
    case("mul.wide.u32 %l2, %a, %c;", &|x, y| (x & 0xffff_ffff) * (y >> 32));
    case("mul.wide.s32 %l2, %a, %c;", &|x, y| (i64::from(x as i32) * i64::from((y >> 32) as i32)) as u64);
    case("mad.wide.u32 %l2, %a, %c, %l1;", &|x, y| ((x & 0xffff_ffff) * (y >> 32)).wrapping_add(y));
}

#[test]
fn sixteen_bits() {
    let short = "cvt.u16.u32 %h0, %a; cvt.u16.u32 %h1, %b;";
    let case = |op: &str, f: &dyn Fn(u16, u16) -> u16| {
        check(&format!("{short} {op} cvt.u32.u16 %d, %h2;"), inputs(), |a, b, _| f(a as u16, b as u16).into());
    };
    case("add.s16 %h2, %h0, %h1;", &u16::wrapping_add);
    case("mul.lo.s16 %h2, %h0, %h1;", &u16::wrapping_mul);
    case("max.s16 %h2, %h0, %h1;", &|a, b| (a as i16).max(b as i16) as u16);
    case("not.b16 %h2, %h0;", &|a, _| !a);
    case("shr.s16 %h2, %h0, 3;", &|a, _| (a as i16 >> 3) as u16);
    check(&format!("{short} mul.wide.s16 %d, %h0, %h1;"), inputs(), |a, b, _| {
        (i32::from(a as i16) * i32::from(b as i16)) as u32
    });
}

#[test]
fn pairs_of_sixteen_bits() {
    // both halves of any sign
    let spread = |seed| mixed(seed).map(|word| word.wrapping_mul(0x9e37_79b1));
    let inputs = [spread(1), spread(2), spread(3)];
    let pair = |f: &dyn Fn(u16, u16) -> u16, a: u32, b: u32| {
        u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16 | u32::from(f(a as u16, b as u16))
    };
    let case = |op: &str, f: &dyn Fn(u16, u16) -> u16| {
        check_hopper(&format!("{op} %d, %a, %b;"), inputs, |a, b, _| pair(f, a, b));
    };
    case("add.s16x2", &u16::wrapping_add);
    case("add.u16x2", &u16::wrapping_add);
    case("max.s16x2", &|a, b| (a as i16).max(b as i16) as u16);
    case("min.s16x2", &|a, b| (a as i16).min(b as i16) as u16);
    case("max.u16x2", &u16::max);
    case("min.u16x2", &u16::min);
}

#[test]
fn places_of_bits() {
    let top = |x: u64, bits: u32| if x == 0 { u32::MAX } else { bits - 1 - (x << (64 - bits)).leading_zeros() };
    let signed = |x: i64| (x ^ (x >> 63)) as u64;
    check("bfind.u32 %d, %a;", inputs(), |a, _, _| top(a.into(), 32));
    check("bfind.s32 %d, %a;", inputs(), |a, _, _| top(signed((a as i32).into()), 32));
    check("bfind.shiftamt.u32 %d, %a;", inputs(), |a, _, _| if a == 0 { u32::MAX } else { a.leading_zeros() });
    check("bfind.shiftamt.s32 %d, %a;", inputs(), |a, _, _| match top(signed((a as i32).into()), 32) {
        u32::MAX => u32::MAX,
        place => 31 - place,
    });
    let wide = |op: &str| format!("mov.b64 %l0, {{%a, %b}}; {op} %d, %l0;");
    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    check(&wide("bfind.u64"), inputs(), |a, b, _| top(pair(a, b), 64));
    check(&wide("bfind.s64"), inputs(), |a, b, _| top(signed(pair(a, b) as i64), 64));
    check(&wide("popc.b64"), inputs(), |a, b, _| pair(a, b).count_ones());
    // the set bits in the order in which an offset counts them
    for offset in -34_i32..=34 {
        let body = format!("and.b32 %r0, %b, 31; fns.b32 %d, %a, %r0, {offset};");
        check(&body, inputs(), |mask, b, _| {
            let set = |place: &u32| mask >> place & 1 == 1;
            let nth = offset.unsigned_abs().saturating_sub(1) as usize;
            let found = match offset {
                0 => Some(b & 31).filter(set),
                1.. => (b & 31..32).filter(set).nth(nth),
                _ => (0..=b & 31).rev().filter(set).nth(nth),
            };
            found.unwrap_or(u32::MAX)
        });
    }
}

#[test]
fn bit_fields_as_the_manual_defines_them() {
    let field = |a: u32, b: u32, c: u32, signed: bool| {
        let (position, length) = (b & 0xff, c & 0xff);
        let sign = signed && length != 0 && a >> (position + length - 1).min(31) & 1 == 1;
        (0..32).fold(0, |out, i| {
            let bit = if i < length && position + i <= 31 { a >> (position + i) & 1 == 1 } else { sign };
            out | u32::from(bit) << i
        })
    };
    check("bfe.u32 %d, %a, %b, %c;", inputs(), |a, b, c| field(a, b, c, false));
    check("bfe.s32 %d, %a, %b, %c;", inputs(), |a, b, c| field(a, b, c, true));
    for (position, length) in [(0, 8), (5, 7), (28, 8), (31, 1), (32, 4), (3, 0), (0, 32), (0, 255), (40, 40)] {
        let values = [mixed(4), [position; 32], [length; 32]];
        check("bfe.s32 %d, %a, %b, %c;", values, |a, b, c| field(a, b, c, true));
        check("bfe.u32 %d, %a, %b, %c;", values, |a, b, c| field(a, b, c, false));
        let insert = format!("bfi.b32 %d, %a, %b, {position}, {length};");
        check(&insert, inputs(), |a, b, _| {
            (0..length).fold(b, |out, i| match position + i {
                at @ 0..=31 => out & !(1 << at) | (a.checked_shr(i).unwrap_or(0) & 1) << at,
                _ => out,
            })
        });
    }
}

#[test]
fn bytes() {
    assert_eq!(run_one("prmt.b32 %d, %a, %b, 0x5410;", [0x3322_1100, 0x7766_5544, 0]), 0x5544_1100);
    assert_eq!(run_one("prmt.b32 %d, %a, %b, 0x7632;", [0x3322_1100, 0x7766_5544, 0]), 0x7766_3322);
    assert_eq!(run_one("prmt.b32 %d, %a, %b, %c;", [0x3322_1180, 0x7766_5544, 0x9830]), 0x00ff_3380);
    let dot = |a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool| {
        let byte = |word: u32, i: u32, signed: bool| {
            let byte = (word >> (8 * i)) as u8;
            if signed { i64::from(byte as i8) } else { byte.into() }
        };
        (0..4).fold(i64::from(c), |sum, i| sum + byte(a, i, a_signed) * byte(b, i, b_signed)) as u32
    };
    check("dp4a.s32.s32 %d, %a, %b, %c;", inputs(), |a, b, c| dot(a, b, c, true, true));
    check("dp4a.u32.s32 %d, %a, %b, %c;", inputs(), |a, b, c| dot(a, b, c, false, true));
    check("dp4a.u32.u32 %d, %a, %b, %c;", inputs(), |a, b, c| dot(a, b, c, false, false));
    check("lop3.b32 %d, %a, %b, %c, 0x96;", inputs(), |a, b, c| a ^ b ^ c);
    check("lop3.b32 %d, %a, %b, %c, 0xca;", inputs(), |a, b, c| a & b | !a & c);
}

#[test]
fn comparisons_and_selections() {
    let select = |test: &str| format!("{test} selp.b32 %d, 1, 0, %p0;");
    check(&select("setp.lt.s32 %p0, %a, %b;"), inputs(), |a, b, _| ((a as i32) < b as i32).into());
    check(&select("setp.lo.u32 %p0, %a, %b;"), inputs(), |a, b, _| (a < b).into());
    check(&select("setp.ne.b32 %p0, %a, %b;"), inputs(), |a, b, _| (a != b).into());
    let combined = "setp.gt.u32 %p1, %b, %c; setp.ge.and.u32 %p0|%p2, %a, %b, !%p1;";
    check(&select(combined), inputs(), |a, b, c| (a >= b && b <= c).into());
    let other = format!("{combined} selp.b32 %d, 1, 0, %p2;");
    check(&other, inputs(), |a, b, c| (a < b && b <= c).into());
    check("set.gt.u32.u32 %d, %a, %b;", inputs(), |a, b, _| if a > b { u32::MAX } else { 0 });
    check("slct.b32.s32 %d, %a, %b, %c;", inputs(), |a, b, c| if c as i32 >= 0 { a } else { b });
    let logic = "setp.lt.u32 %p1, %a, %b; setp.lt.u32 %p2, %b, %c; xor.pred %p0, %p1, %p2; not.pred %p0, %p0;";
    check(&select(logic), inputs(), |a, b, c| ((a < b) == (b < c)).into());
}
