//! Random work of every kind from eight threads at once, for as long as `INT_FLASH_SOAK` says in seconds: each result is held to the reference, what runs
//! again and again has the same bits, and the GPU has as much memory at the end as before.

use crate::device::OnGpu;
use crate::{cache, decode, device, jobs, prefill};
use anyhow::{Context, Error, Result, ensure};
use int_flash_attention::{AttentionProblem, DecodeProblem, Family, JobPath, Split, Stream, StreamRef, reference};
use int_flash_attention_kernels::config::decode::DECODE;
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use int_flash_attention_tests::case::{any_case, any_scored_case};
use int_flash_attention_tests::decode::{DecodeCase, Numbers, WINDOWS, matches_the_reference};
use int_flash_attention_tests::prefill::CHANGES;
use int_flash_attention_tests::sequences::{self, any_pack, any_scored_pack};
use int_flash_attention_tests::{draw, properties};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

const THREADS: usize = 8;
/// Launches that have to have the same bits, of each thread.
const REPEATS: usize = 1000;
/// What the driver keeps of its own may grow a little, a little at a time.
const SLACK: usize = 64 << 20;

/// One problem of a kind, all of it from the seed.
type Kind = fn(&OnGpu, u64) -> Result<()>;

const KINDS: [(&str, Kind); 9] = [
    ("dense", dense),
    ("packs", packs),
    ("changed scores", scored),
    ("packs with changed scores", scored_packs),
    ("jobs", job),
    ("decodes", decodes),
    ("appends", cache::append),
    ("caches", cache::steps),
    ("prefills", prefills),
];

fn dense(on: &OnGpu, seed: u64) -> Result<()> {
    let case = draw(&any_case(400), seed)?;
    properties::all(on, &case).with_context(|| format!("{case:?}"))
}

fn packs(on: &OnGpu, seed: u64) -> Result<()> {
    let (case, lengths) = draw(&any_pack(any_case(40), 400), seed)?;
    sequences::all(&on.with_lengths(&lengths), on, &case, &lengths).with_context(|| format!("{case:?} {lengths:?}"))
}

fn scored(on: &OnGpu, seed: u64) -> Result<()> {
    let case = draw(&any_scored_case(400), seed)?;
    let [q, k, v] = case.tensors()?;
    let operands = reference::quantize(&case.problem, &q, &k, &v)?;
    properties::attention(on, &case, &operands).with_context(|| format!("{case:?}"))
}

fn scored_packs(on: &OnGpu, seed: u64) -> Result<()> {
    let (case, lengths) = draw(&any_scored_pack(any_case(40), 400), seed)?;
    sequences::all(&on.with_lengths(&lengths), on, &case, &lengths).with_context(|| format!("{case:?} {lengths:?}"))
}

fn job(on: &OnGpu, seed: u64) -> Result<()> {
    jobs::all(on, &draw(&any_case(300), seed)?)
}

fn decodes(on: &OnGpu, seed: u64) -> Result<()> {
    let mut numbers = Numbers::new(seed);
    let mut any = |n| numbers.below(n);
    let variant = &DECODE[any(DECODE.len())];
    let (batch, heads_kv, longest) = (1 + any(9), 1 + any(4), 1 + any(3000));
    let problem = DecodeProblem {
        seqlen_q: 1 + any(8),
        window: WINDOWS[any(WINDOWS.len())],
        split: [Split::Even, Split::Fixed(128), Split::Fixed(512)][any(3)],
        softcap: [None, Some(7.5)][any(2)],
        alibi: any(2) == 0,
        sinks: any(2) == 0,
        ..DecodeProblem::new(batch, heads_kv * (1 + any(8)), heads_kv, longest, variant.head_dim)
    };
    let lengths: Vec<u32> = (0..batch).map(|_| any(longest + 1) as u32).collect();
    let dtype = crate::DTYPES[any(3)];
    matches_the_reference(on, &DecodeCase::new(problem, &lengths, seed).of(variant), dtype)
}

fn prefills(on: &OnGpu, seed: u64) -> Result<()> {
    let mut numbers = Numbers::new(seed);
    let mut any = |n| numbers.below(n);
    let mut lengths: Vec<(u32, u32)> = (0..6)
        .map(|_| {
            let (length, new) = (any(400) as u32, any(200) as u32);
            (length, if any(4) == 0 { new % 2 } else { new.min(length) })
        })
        .collect();
    lengths[0].1 += 1;
    let (head_dim, packed, change) =
        (CACHE_HEAD_DIMS[any(CACHE_HEAD_DIMS.len())], any(2) == 0, CHANGES[any(CHANGES.len())]);
    prefill::runs(on, &lengths, head_dim, packed, change, seed)
        .with_context(|| format!("{lengths:?}, head dim {head_dim}, packed {packed}, {change:?}"))
}

/// A thread's launches of one problem on its own stream, bit for bit.
fn repeats(on: &OnGpu, thread: usize) -> Result<()> {
    let stream = on.gpu.stream()?;
    let problem = AttentionProblem::new(1, 4, 2, 300, 500, 64).with_causal(thread < 4);
    match thread % 4 {
        0 => {
            let mut job = device::OnDevice::new(on, problem, thread as u64)?;
            same(&stream, |stream| {
                job.launch(stream)?;
                stream.synchronize()?;
                Ok(bytemuck::cast_slice(&device::bits(&job.o)?).to_vec())
            })
        }
        1 => {
            let path = [JobPath::Fused, JobPath::Quantized][thread / 4 % 2];
            let (mut job, plan) = jobs::Job::new(&on.gpu, path, problem, thread as u64)?;
            same(&stream, |stream| {
                job.launch(&plan, stream)?;
                stream.synchronize()?;
                Ok(bytemuck::cast_slice(&job.bits()?).to_vec())
            })
        }
        2 => {
            let problem = DecodeProblem::new(5, 8, 2, 2000, [64, 128][thread / 4 % 2]);
            let case = DecodeCase::new(problem, &[2000, 0, 1, 700, 1300], thread as u64);
            let mut job = decode::OnDevice::new(&on.gpu, &case, crate::DTYPES[0])?;
            same(&stream, |stream| {
                job.launch(StreamRef::from(stream))?;
                stream.synchronize()?;
                let (o, lse) = job.result()?;
                Ok([o.bytes(), bytemuck::cast_slice(&lse)].concat())
            })
        }
        _ => prefill::repeats(on, thread as u64, |launch| same(&stream, launch)),
    }
}

fn same(stream: &Stream, mut launch: impl FnMut(&Stream) -> Result<Vec<u8>>) -> Result<()> {
    let first = launch(stream)?;
    for repeat in 1..REPEATS {
        ensure!(launch(stream)? == first, "launch {repeat} has other bits than the first");
    }
    Ok(())
}

/// Threads and what they have done.
struct Soak<'a> {
    on: &'a OnGpu,
    seed: u64,
    done: [AtomicUsize; KINDS.len()],
    failed: AtomicBool,
    first_error: Mutex<Option<Error>>,
}

impl Soak<'_> {
    /// Lets every thread do this.
    fn with_threads(&self, work: impl Fn(&OnGpu, usize) -> Result<()> + Sync) -> Result<()> {
        let families = self.on.gpu.families();
        std::thread::scope(|threads| {
            for thread in 0..THREADS {
                let on = OnGpu { family: families[thread % families.len()], ..self.on.clone() };
                let work = &work;
                threads.spawn(move || {
                    if let Err(error) = work(&on, thread) {
                        self.failed.store(true, Relaxed);
                        self.first_error.lock().expect("no panic").get_or_insert(error);
                    }
                });
            }
        });
        self.first_error.lock().expect("no panic").take().map_or(Ok(()), Err)
    }

    /// A thread's problem of this round.
    fn problem(&self, on: &OnGpu, thread: usize, round: u64) -> Result<()> {
        let kind = (thread + round as usize) % KINDS.len();
        // One after the other begins a sequence anew: far apart.
        let seed = (self.seed << 40) + ((thread as u64) << 32) + round;
        let (name, run) = KINDS[kind];
        run(on, seed).with_context(|| format!("{name} of seed {seed} on {:?}, thread {thread}", on.family))?;
        self.done[kind].fetch_add(1, Relaxed);
        Ok(())
    }
}

pub fn soak(on: &OnGpu) -> Result<()> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    let time = Duration::from_secs(number("INT_FLASH_SOAK").unwrap_or(5));
    let soak = Soak {
        on,
        seed: number("INT_FLASH_SEED").unwrap_or(0),
        done: Default::default(),
        failed: AtomicBool::new(false),
        first_error: Mutex::new(None),
    };
    // Every kind once, so that its kernels are loaded, and what the driver keeps for launches is there.
    let kinds = KINDS.len() as u64;
    soak.with_threads(|on, thread| {
        let all = [Family::Sm80, on.family].map(|family| OnGpu { family, ..on.clone() });
        all.iter().try_for_each(|on| (0..kinds).try_for_each(|round| soak.problem(on, thread, round)))
    })?;
    let level = || -> Result<usize> {
        on.gpu.synchronize()?;
        Ok(on.gpu.memory()?.0)
    };
    let (before, start) = (level()?, Instant::now());
    soak.with_threads(repeats)?;
    soak.with_threads(|on, thread| {
        let more = |_: &u64| start.elapsed() < time && !soak.failed.load(Relaxed);
        (kinds..).take_while(more).try_for_each(|round| soak.problem(on, thread, round))
    })?;
    let after = level()?;
    for ((name, _), done) in KINDS.iter().zip(&soak.done) {
        println!("{:>7} {name}", done.load(Relaxed));
    }
    println!("{THREADS} threads and streams, {REPEATS} launches of each bit for bit, {:?}", start.elapsed());
    println!("free memory: {} MiB before, {} MiB after", before >> 20, after >> 20);
    // Of a GPU that others use the level says nothing.
    if number("INT_FLASH_SHARED_GPU").is_none() {
        ensure!(after + SLACK >= before, "{} bytes of the GPU's memory are gone", before - after);
    }
    Ok(())
}
