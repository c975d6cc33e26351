//! A fixed number of mutations through every target. `INT_FLASH_FUZZ_CASES` and `INT_FLASH_SEED` make it another one.

use int_flash_attention_fuzz::TARGETS;
use int_flash_attention_fuzz::mutate::{Random, mutate};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("a file")).collect()
}

fn bounded(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(target, _)| *target == name).expect("a target");
    let corpus = corpus(name);
    let mut random = Random(number("INT_FLASH_SEED", 0));
    let mutated = (0..number("INT_FLASH_FUZZ_CASES", 20_000)).map(|_| mutate(&mut random, &corpus));
    for bytes in corpus.iter().cloned().chain(mutated) {
        if catch_unwind(AssertUnwindSafe(|| target(&bytes))).is_err() {
            panic!("{name} fails on \"{}\"", bytes.escape_ascii());
        }
    }
}

#[test]
fn caches() {
    bounded("cache");
}

#[test]
fn files() {
    bounded("file");
}

#[test]
fn layouts() {
    bounded("layout");
}

#[test]
fn lengths() {
    bounded("lengths");
}

#[test]
fn scores() {
    bounded("scores");
}

#[test]
fn tables() {
    bounded("tables");
}

#[test]
fn problems() {
    bounded("problem");
}

#[test]
fn ptx() {
    bounded("ptx");
}

/// Mutations of a corpus that is refused at its first line would see nothing.
#[test]
fn the_corpus_is_good() {
    for bytes in corpus("ptx") {
        let text = String::from_utf8(bytes).expect("text");
        ptx_machine::Module::load(&text).unwrap_or_else(|error| panic!("{error}"));
    }
    let read = |bytes: &Vec<u8>| {
        let mut file = std::io::Cursor::new(bytes);
        xtask::tensors::parse(&mut file, Default::default(), Default::default()).is_ok()
    };
    assert_eq!(corpus("file").iter().filter(|bytes| read(bytes)).count(), 3);
}
