//! Pages of an allocation, which may be terabytes long and is touched in few places.

use bytemuck::allocation::zeroed_slice_box;
use std::sync::atomic::{
    AtomicU8, AtomicU32,
    Ordering::{Acquire, Release},
};
use std::sync::{Mutex, OnceLock};

/// Words, and what of them something has written.
pub(super) struct Page {
    pub(super) words: Box<[AtomicU32]>,
    /// One bit for each byte of the word.
    pub(super) written: Box<[AtomicU8]>,
}

impl Page {
    /// Memory of the system's zeros until it is touched.
    fn new(words: usize) -> Self {
        Self { words: zeroed_slice_box(words), written: zeroed_slice_box(words) }
    }
}

/// The pages by their places.
///
/// What an allocation takes that is hardly touched must not grow with its length: the numbers are the system's zeros as well, and pages are where
/// they were made, the first alone, then twice as many together each time.
pub(super) struct Pages {
    /// The number of each page, from 1 on; 0 where nothing has touched it.
    numbers: Box<[AtomicU32]>,
    made: [OnceLock<Box<[OnceLock<Page>]>>; 32],
    count: Mutex<u32>,
}

impl Pages {
    /// None touched.
    pub(super) fn new(places: usize) -> Self {
        Self { numbers: zeroed_slice_box(places), made: Default::default(), count: Mutex::new(0) }
    }

    /// A page that something has touched.
    #[inline(always)]
    pub(super) fn get(&self, place: usize) -> Option<&Page> {
        match self.numbers[place].load(Acquire) {
            0 => None,
            number => self.slot(number).get(),
        }
    }

    /// The page, of so many words where it is touched for the first time.
    #[inline(always)]
    pub(super) fn touch(&self, place: usize, words: impl FnOnce() -> usize) -> &Page {
        match self.get(place) {
            Some(page) => page,
            None => self.make(place, words()),
        }
    }

    #[cold]
    fn make(&self, place: usize, words: usize) -> &Page {
        let mut count = self.count.lock().expect("no holder of this lock panics");
        let known = self.numbers[place].load(Acquire);
        let number = if known == 0 { *count + 1 } else { known };
        let page = self.slot(number).get_or_init(|| Page::new(words));
        if known == 0 {
            *count = number;
            self.numbers[place].store(number, Release);
        }
        page
    }

    #[inline(always)]
    fn slot(&self, number: u32) -> &OnceLock<Page> {
        let together = number.ilog2();
        let pages = self.made[together as usize].get_or_init(|| (0..1 << together).map(|_| OnceLock::new()).collect());
        &pages[number as usize - (1 << together)]
    }

    /// All that something has touched.
    pub(super) fn touched(&self) -> impl Iterator<Item = &Page> {
        self.made.iter().filter_map(OnceLock::get).flatten().filter_map(OnceLock::get)
    }
}
