//! The register file of a warp: each register holds the values of all 32 lanes side by side.

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;

/// Where a register begins in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot(pub(crate) u32);

/// The register file of one warp.
///
/// Predicates take one word (a bit for each lane), registers of up to 32 bits take 16, wider ones 32. Constants and
/// special registers live here too, so that every operand is a slot.
#[derive(Clone, Default)]
pub(crate) struct Registers {
    words: Vec<u64>,
}

/// A value that registers hold, one for each lane.
pub(crate) trait Lane: Copy + Default {
    /// The values of all lanes.
    fn read(registers: &Registers, slot: Slot) -> [Self; LANES];
    /// Replaces the values of the lanes in `mask`.
    fn write(registers: &mut Registers, slot: Slot, mask: u32, values: &[Self; LANES]);
}

impl Registers {
    /// A file with the given contents.
    pub(crate) fn new(words: Vec<u64>) -> Self {
        Self { words }
    }

    /// Becomes a copy of `other`, without allocating.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.words.clone_from(&other.words);
    }

    /// A register of up to 32 bits.
    #[inline(always)]
    pub(crate) fn narrow(&self, slot: Slot) -> &[u32; LANES] {
        let words: &[u64; 16] = self.words[slot.0 as usize..].first_chunk().expect("slots lie inside the file");
        bytemuck::cast_ref(words)
    }

    /// A register of up to 32 bits, to be written.
    #[inline(always)]
    pub(crate) fn narrow_mut(&mut self, slot: Slot) -> &mut [u32; LANES] {
        let words: &mut [u64; 16] = self.words[slot.0 as usize..].first_chunk_mut().expect("slots lie inside the file");
        bytemuck::cast_mut(words)
    }

    /// A register of 64 bits.
    #[inline(always)]
    pub(crate) fn wide(&self, slot: Slot) -> &[u64; LANES] {
        self.words[slot.0 as usize..].first_chunk().expect("slots lie inside the file")
    }

    /// A register of 64 bits, to be written.
    #[inline(always)]
    pub(crate) fn wide_mut(&mut self, slot: Slot) -> &mut [u64; LANES] {
        self.words[slot.0 as usize..].first_chunk_mut().expect("slots lie inside the file")
    }

    /// A predicate: one bit for each lane.
    #[inline(always)]
    pub(crate) fn predicate(&self, slot: Slot) -> u32 {
        self.words[slot.0 as usize] as u32
    }

    /// Replaces a predicate in the lanes of `mask`.
    #[inline(always)]
    pub(crate) fn set_predicate(&mut self, slot: Slot, mask: u32, value: u32) {
        let word = &mut self.words[slot.0 as usize];
        *word = u64::from(*word as u32 & !mask | value & mask);
    }

    /// Writes `f` of one register.
    #[inline(always)]
    pub(crate) fn map<A: Lane, D: Lane>(&mut self, mask: u32, d: Slot, a: Slot, f: impl Fn(A) -> D) {
        let a = A::read(self, a);
        let mut out = [D::default(); LANES];
        for i in 0..LANES {
            out[i] = f(a[i]);
        }
        D::write(self, d, mask, &out);
    }

    /// Writes `f` of two registers.
    #[inline(always)]
    pub(crate) fn zip<A: Lane, B: Lane, D: Lane>(
        &mut self,
        mask: u32,
        d: Slot,
        [a, b]: [Slot; 2],
        f: impl Fn(A, B) -> D,
    ) {
        let (a, b) = (A::read(self, a), B::read(self, b));
        let mut out = [D::default(); LANES];
        for i in 0..LANES {
            out[i] = f(a[i], b[i]);
        }
        D::write(self, d, mask, &out);
    }

    /// Writes `f` of three registers.
    #[inline(always)]
    pub(crate) fn zip3<A: Lane, B: Lane, C: Lane, D: Lane>(
        &mut self,
        mask: u32,
        d: Slot,
        [a, b, c]: [Slot; 3],
        f: impl Fn(A, B, C) -> D,
    ) {
        let (a, b, c) = (A::read(self, a), B::read(self, b), C::read(self, c));
        let mut out = [D::default(); LANES];
        for i in 0..LANES {
            out[i] = f(a[i], b[i], c[i]);
        }
        D::write(self, d, mask, &out);
    }
}

/// The lanes whose bit is set, in order.
#[inline(always)]
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        (left != 0).then(|| {
            let lane = left.trailing_zeros() as usize;
            left &= left - 1;
            lane
        })
    })
}

#[inline(always)]
fn blend<T: Copy>(target: &mut [T; LANES], mask: u32, values: &[T; LANES]) {
    if mask == u32::MAX {
        *target = *values;
    } else {
        for i in 0..LANES {
            target[i] = if mask >> i & 1 == 1 { values[i] } else { target[i] };
        }
    }
}

macro_rules! same_width_lane {
    ($($ty:ty: $get:ident, $get_mut:ident;)*) => {$(
        impl Lane for $ty {
            #[inline(always)]
            fn read(registers: &Registers, slot: Slot) -> [Self; LANES] {
                bytemuck::cast(*registers.$get(slot))
            }
            #[inline(always)]
            fn write(registers: &mut Registers, slot: Slot, mask: u32, values: &[Self; LANES]) {
                blend(bytemuck::cast_mut(registers.$get_mut(slot)), mask, values);
            }
        }
    )*};
}

same_width_lane! {
    u32: narrow, narrow_mut;
    i32: narrow, narrow_mut;
    f32: narrow, narrow_mut;
    u64: wide, wide_mut;
    i64: wide, wide_mut;
    f64: wide, wide_mut;
}

macro_rules! short_lane {
    ($($ty:ty, $unsigned:ty;)*) => {$(
        impl Lane for $ty {
            #[inline(always)]
            fn read(registers: &Registers, slot: Slot) -> [Self; LANES] {
                registers.narrow(slot).map(|word| word as $ty)
            }
            #[inline(always)]
            fn write(registers: &mut Registers, slot: Slot, mask: u32, values: &[Self; LANES]) {
                blend(registers.narrow_mut(slot), mask, &values.map(|value| u32::from(value as $unsigned)));
            }
        }
    )*};
}

short_lane! {
    u16, u16;
    i16, u16;
}
