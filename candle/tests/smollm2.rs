//! A language model with INT8 attention stays the one that it is with plain attention.

#[path = "../examples/smollm2/measure.rs"]
mod measure;
#[path = "../examples/smollm2/model.rs"]
mod model;

use measure::{Figures, TEXT, measure, model_file};
use model::Model;

/// Few enough tokens for a build that is not optimized.
const TOKENS: usize = 192;

#[test]
fn smollm2_stays_itself() {
    let file = match model_file() {
        Ok(file) => file,
        Err(error) => return println!("SKIPPED, the model cannot be had: {error}"),
    };
    let model = Model::load(&file).expect("the model");
    assert_eq!(model.layers(), 30);
    let figures = measure(&model, TEXT, TOKENS, || ()).expect("figures");
    println!("{figures:?}");
    let Figures { tokens, perplexity_plain, perplexity_int8, kl, top1 } = figures;
    assert_eq!(tokens, TOKENS);
    // English prose, which a model that is read wrongly does not predict at all.
    assert!(perplexity_plain < 40.0, "{figures:?}");
    assert!((perplexity_int8 / perplexity_plain - 1.0).abs() < 0.01, "{figures:?}");
    assert!(kl < 0.005 && top1 > 0.95, "{figures:?}");
}
