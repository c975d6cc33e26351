//! Recordings and contexts on a real driver: what the pretended one (`tests/tests/driver`) takes for granted.

use crate::Skipped;
use crate::device::{OnDevice, OnGpu, bits};
use anyhow::{Result, bail, ensure};
use int_flash_attention::{AttentionProblem, DType, Error, Gpu, HostTensor, Options, SeqLens, StreamRef, TensorLayout};
use std::sync::atomic::{AtomicBool, Ordering};

const PROBLEM: AttentionProblem = AttentionProblem::new(1, 4, 2, 300, 500, 64);

/// A graph whose buffers and plans were dropped writes into their memory, not into what was allocated since.
pub fn keeps_memory(on: &OnGpu) -> Result<()> {
    let gpu = &on.gpu;
    let stream = gpu.stream()?;
    let graph = {
        let mut job = OnDevice::new(on, PROBLEM, 1)?;
        gpu.capture(&stream, || job.launch(&stream))?
    };
    let bytes = vec![0x5a_u8; 1 << 20];
    let others = (0..64).map(|_| gpu.upload(&bytes)).collect::<int_flash_attention::Result<Vec<_>>>()?;
    for _ in 0..3 {
        graph.launch(&stream)?;
    }
    stream.synchronize()?;
    for (number, other) in others.iter().enumerate() {
        ensure!(other.to_vec()? == bytes, "the graph wrote into allocation {number}");
    }
    let (free_with, _) = gpu.memory()?;
    drop((graph, others));
    let (free_without, _) = gpu.memory()?;
    ensure!(free_without > free_with, "nothing was freed with the graph");
    Ok(())
}

/// A recording stays whole while another thread allocates, uploads, launches, frees and runs whole jobs.
pub fn beside(on: &OnGpu) -> Result<()> {
    let gpu = &on.gpu;
    let stream = gpu.stream()?;
    let mut job = OnDevice::new(on, PROBLEM, 1)?;
    job.launch(&stream)?;
    stream.synchronize()?;
    let expected = bits(&job.o)?;
    let done = AtomicBool::new(false);
    let graphs = std::thread::scope(|threads| {
        let worker = threads.spawn(|| -> Result<usize> {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                other_work(on)?;
                rounds += 1;
            }
            Ok(rounds)
        });
        let mut record = || -> Result<Vec<_>> {
            let mut graphs = Vec::new();
            for _ in 0..100 {
                let old = gpu.alloc::<u8>(1 << 16)?;
                graphs.push(gpu.capture(&stream, || {
                    job.launch(&stream)?;
                    drop(old);
                    let values = gpu.upload(&[1.0_f32; 1000])?;
                    let refused = gpu.synchronize();
                    assert!(matches!(refused, Err(Error::Recording { .. })), "{refused:?}");
                    drop(values);
                    std::thread::sleep(std::time::Duration::from_millis(2));
                    job.launch(&stream)
                })?);
            }
            Ok(graphs)
        };
        let graphs = record();
        done.store(true, Ordering::Relaxed);
        let rounds = worker.join().expect("the other thread did not panic")?;
        println!("{rounds} rounds of other work beside 100 recordings");
        graphs
    })?;
    job.o.copy_from_on(&stream, &vec![half::f16::NAN; job.o.len()])?;
    for graph in &graphs {
        graph.launch(&stream)?;
    }
    stream.synchronize()?;
    ensure!(bits(&job.o)? == expected, "a replay differs from a launch");
    graphs[0].launch(StreamRef::LEGACY)?;
    graphs[0].launch(StreamRef::PER_THREAD)?;
    gpu.synchronize()?;
    ensure!(bits(&job.o)? == expected, "a replay on a default stream differs");
    Ok(())
}

/// What a thread does that records nothing.
fn other_work(on: &OnGpu) -> Result<()> {
    let stream = on.gpu.stream()?;
    let values: Vec<f32> = (0..10_000).map(|x| x as f32).collect();
    ensure!(on.gpu.upload(&values)?.to_vec_on(&stream)? == values, "an upload came back otherwise");
    let mut job = OnDevice::new(on, PROBLEM, 2)?;
    job.launch(&stream)?;
    stream.synchronize()?;
    let layout = TensorLayout::bhnd(AttentionProblem::new(1, 2, 2, 33, 33, 32).q_shape());
    let x = HostTensor::from_fn(DType::F16, layout, |_, h, n, d| ((h + 3 * n + 7 * d) as f32).sin())?;
    on.gpu.attention(&x, &x, &x, &Options::default())?;
    Ok(())
}

/// What is of one GPU is refused by the plans and graphs of another, and each works on its own.
pub fn two_gpus(on: &OnGpu) -> Result<()> {
    let there = match Gpu::new(1) {
        Err(Error::NoSuchDevice { count, .. }) => bail!(Skipped(format!("needs two GPUs, there are {count}"))),
        gpu => OnGpu { gpu: gpu?, family: on.family, shared_bytes: None, ahead: 0, lengths: SeqLens::Equal },
    };
    let (mut a, mut b) = (OnDevice::new(on, PROBLEM, 1)?, OnDevice::new(&there, PROBLEM, 1)?);
    let (stream, foreign) = (on.gpu.stream()?, there.gpu.stream()?);
    let refused = |result: int_flash_attention::Result<()>, what: &str| -> Result<()> {
        let named = matches!(&result, Err(Error::OtherContext { name, .. }) if *name == what);
        ensure!(named, "{what} of another GPU: {result:?}");
        Ok(())
    };
    refused(a.launch(&foreign), "the stream")?;
    std::mem::swap(&mut a.inputs, &mut b.inputs);
    refused(a.launch(&stream), "q")?;
    std::mem::swap(&mut a.inputs, &mut b.inputs);
    let graph = on.gpu.capture(&stream, || a.launch(&stream))?;
    refused(graph.launch(&foreign), "the stream")?;
    graph.launch(&stream)?;
    b.launch(&foreign)?;
    // Another GPU's event may be waited for.
    let event = there.gpu.event()?;
    event.record(&foreign)?;
    stream.wait(&event)?;
    stream.synchronize()?;
    foreign.synchronize()?;
    ensure!(bits(&a.o)? == bits(&b.o)?, "two GPUs differ");
    Ok(())
}
