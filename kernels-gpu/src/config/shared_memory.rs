//! GPUs by the shared memory that one CTA may have: what a kernel's row plans for each.

/// KiB of shared memory that one CTA may have, on RTX 30 to 50, A10, A40, L4 and L40; on A100; on H100, H200 and B200. An SM has one KiB more.
pub const CLASSES: [usize; 3] = [99, 163, 227];

/// The class of a GPU on which one CTA may have so many bytes: the largest that it has room for, and else the smallest.
#[must_use]
pub const fn class_of(shared_bytes: usize) -> usize {
    let mut class = CLASSES.len() - 1;
    while class > 0 && shared_bytes < CLASSES[class] << 10 {
        class -= 1;
    }
    class
}

/// Shared memory of an SM that the system takes for each CTA.
pub const SYSTEM_BYTES: usize = 1 << 10;

/// What a CTA that needs so many bytes asks for on a GPU on which it may have `here`, so that an SM holds no more of them than where it
/// may have `there`.
#[must_use]
pub const fn asked(needed: usize, there: usize, here: usize) -> usize {
    if there >= here {
        return needed;
    }
    let ctas = (there + SYSTEM_BYTES) / (needed + SYSTEM_BYTES);
    if ctas == 0 {
        return needed;
    }
    (here + SYSTEM_BYTES) / ctas / 128 * 128 - SYSTEM_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_of_the_largest_class_that_it_has_room_for() {
        let bytes = [(1, 0), (99, 0), (162, 0), (163, 1), (226, 1), (227, 2), (300, 2)];
        for (kib, class) in bytes {
            assert_eq!(class_of(kib << 10), class, "{kib}");
        }
        assert_eq!(class_of((163 << 10) - 1), 0);
    }

    #[test]
    fn no_more_ctas_fit_than_elsewhere() {
        let [small, _, large] = CLASSES.map(|kib| kib << 10);
        for needed in [1000, 24_000, 33_000, 48_448, 50_176, 50_177, 81_472, small] {
            let asked = asked(needed, small, large);
            let ctas = |shared: usize, bytes: usize| (shared + SYSTEM_BYTES) / (bytes + SYSTEM_BYTES);
            assert!(needed <= asked && asked <= large, "{needed}");
            assert_eq!(ctas(large, asked), ctas(small, needed), "{needed}");
        }
        assert_eq!([asked(106_816, small, large), asked(5000, large, large)], [106_816, 5000]);
    }
}
