//! The kernels on a real GPU, as one self-contained program: copy it to a machine with a driver and run it.
//!
//! `INT_FLASH_CASES` lowers the number of generated cases (under compute-sanitizer), `INT_FLASH_SEED` changes them;
//! `INT_FLASH_PTX_DIR` is a folder of PTX to test instead of what is embedded; `INT_FLASH_SOAK` is how many seconds the soak takes (`soak.rs`).
//! Without a GPU every test is reported as ignored, and why; so is one that needs more than there is of the GPU's memory, or two GPUs. Where the GPU runs more than one family of attention kernels, tests
//! that launch them run once for each; `NAME::sm_90a` is the one for Hopper.

mod attention;
mod cache;
mod decode;
mod device;
mod families;
mod float16;
mod instructions;
mod jobs;
mod large;
mod launches;
mod layers;
mod machine;
mod packed;
mod prefill;
mod ranks;
mod recordings;
mod rows;
mod scores;
mod soak;

use anyhow::Result;
use device::OnGpu;
use int_flash_attention::{DType, Family, Gpu, SeqLens};
use large::{far_strides, many_elements};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

type Test = fn(&OnGpu) -> Result<()>;

/// Why a test cannot run on this machine: it counts as ignored.
#[derive(Debug)]
struct Skipped(String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tests of the attention kernels, for each family.
const OF_FAMILIES: [(&str, Test); 26] = [
    ("padded_head_dims_match_the_reference", attention::padded_head_dims),
    ("generated_cases_match_the_reference", attention::generated_cases),
    ("awkward_lengths_match_the_reference", attention::awkward_lengths),
    ("hostile_values_match_the_reference", attention::hostile_values),
    ("what_a_row_does_not_see_does_not_change_it", attention::unseen_keys),
    ("rows_that_are_not_aligned_match_the_reference", attention::unaligned_rows),
    ("tiles_that_see_no_key_are_zeros", attention::no_keys),
    ("long_sequences_match_the_reference", attention::long_sequences),
    ("minilm_error_is_as_published", layers::published_error),
    ("decoder_layers_are_within_their_limits", layers::decoder),
    ("a_graph_replays_on_new_inputs", launches::graph),
    ("launches_repeat_bit_for_bit", launches::repeatable),
    ("strides_past_2_to_the_31_elements", far_strides),
    ("operands_past_2_to_the_31_elements", many_elements),
    ("packs_are_as_their_sequences_alone", packed::packs),
    ("generated_packs_and_key_lengths", packed::generated),
    ("packs_with_changed_scores_are_as_their_sequences_alone", packed::scored),
    ("generated_packs_with_changed_scores", packed::generated_scored),
    ("hidden_keys_may_be_anything", packed::hidden_keys),
    ("offsets_that_are_none_stay_inside", packed::bad_offsets),
    ("one_plan_and_one_graph_for_lengths_that_change", packed::lengths_change),
    ("pages_are_read_as_operands", prefill::as_operands),
    ("a_prefill_graph_replays_on_other_tables", prefill::graph),
    ("the_ptx_machine_agrees_on_kernels", machine::kernels),
    ("changed_scores_match_the_reference", scores::reference),
    ("the_ptx_machine_agrees_on_changed_scores", scores::machine),
];

/// All others.
const ONCE: [(&str, Test); 26] = [
    ("appended_tokens_are_the_references", cache::appends),
    ("a_cache_behaves_as_a_model", cache::model),
    ("an_append_in_a_graph_reads_its_slots", cache::graph),
    ("an_append_with_one_slot_twice", cache::one_slot_twice),
    ("kernels_for_less_shared_memory_match_the_reference", attention::less_shared_memory),
    ("float16_kernels_match_float64", float16::matches),
    ("whole_job_equals_the_cpu_within_bounds", jobs::on_host_tensors),
    ("parts_of_the_quantization_equal_the_whole", launches::quantize_parts),
    ("the_families_agree", families::agree),
    ("jobs_match_the_reference", jobs::match_the_reference),
    ("jobs_fill_the_card_and_their_ways_agree", jobs::fill_the_card),
    ("jobs_on_packs_are_the_same_by_both_ways", jobs::packs),
    ("a_graph_of_a_job_replays_on_new_inputs", jobs::graph),
    ("decode_matches_the_reference", decode::matches),
    ("a_decode_gives_what_a_prefill_of_the_same_tokens_gives", decode::is_prefill),
    ("decode_has_the_same_bits_in_every_batch", decode::batches),
    ("a_decode_graph_replays_on_growing_sequences", decode::graph),
    ("states_are_merged_as_in_the_reference", decode::merges),
    ("a_graph_keeps_its_memory", recordings::keeps_memory),
    ("threads_work_beside_a_recording", recordings::beside),
    ("two_gpus_do_not_mix", recordings::two_gpus),
    ("a_ring_of_ranks_matches_the_reference", ranks::ring),
    ("ulysses_over_ranks_has_the_bits_of_one_gpu", ranks::ulysses),
    ("a_decode_over_ranks_matches_the_reference", ranks::decode),
    ("the_ptx_machine_agrees_on_instructions", instructions::instructions),
    ("soak", soak::soak),
];

/// All types of tensors.
const DTYPES: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // one at a time: the reference uses all cores, and some tests use much of the GPU's memory
    arguments.test_threads.get_or_insert(1);
    let folder = std::env::var_os("INT_FLASH_PTX_DIR").map(PathBuf::from);
    let gpu = match &folder {
        // SAFETY: the folder is for what `cargo xtask build` makes of this version's kernels.
        Some(folder) => unsafe { Gpu::with_ptx(0, folder) },
        None => Gpu::new(0),
    };
    let all = OF_FAMILIES.len() + ONCE.len();
    match &gpu {
        Ok(gpu) => {
            let ptx = folder.map_or("embedded".into(), |folder| folder.display().to_string());
            eprintln!("GPU tests on {gpu:?}, PTX {ptx}");
        }
        Err(why) => eprintln!("GPU tests SKIPPED, all {all}: {why}"),
    }
    libtest_mimic::run(&arguments, trials(gpu.ok().as_ref())).exit_code()
}

/// The tests, those of attention kernels for each family that the GPU runs; without a GPU all, ignored.
fn trials(gpu: Option<&Gpu>) -> Vec<Trial> {
    let Some(gpu) = gpu else {
        let tests = OF_FAMILIES.iter().chain(&ONCE);
        return tests.map(|(name, _)| Trial::test(*name, || Ok(())).with_ignored_flag(true)).collect();
    };
    let trial = |name: String, test: Test, family: Family| {
        let on = OnGpu { gpu: gpu.clone(), family, shared_bytes: None, ahead: 0, lengths: SeqLens::Equal };
        Trial::ignorable_test(name, move || match test(&on) {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => match error.downcast_ref::<Skipped>() {
                Some(why) => Ok(Completion::ignored_with(why)),
                None => Err(Failed::from(format!("{error:#}"))),
            },
        })
    };
    let of_family =
        |family| OF_FAMILIES.iter().map(move |&(name, test)| trial(format!("{name}::{family}"), test, family));
    let once = ONCE.iter().map(|&(name, test)| trial(name.into(), test, Family::Sm80));
    gpu.families().into_iter().flat_map(of_family).chain(once).collect()
}
