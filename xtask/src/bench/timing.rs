//! Times of launches on the default stream.

use anyhow::Result;
use int_flash_attention::{Gpu, StreamRef};
use std::time::Instant;

/// Milliseconds that the samples of one figure take together, as far as their number allows.
const BUDGET_MS: f64 = 100.0;

/// Median time of a launch in milliseconds, by events around each. `launch` gets the number of the launch.
pub fn median_ms(gpu: &Gpu, mut launch: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let mut once = |number: usize| -> Result<(int_flash_attention::Event, int_flash_attention::Event)> {
        let (start, end) = (gpu.event()?, gpu.event()?);
        start.record(StreamRef::DEFAULT)?;
        launch(number)?;
        end.record(StreamRef::DEFAULT)?;
        Ok((start, end))
    };
    for number in 0..3 {
        once(number)?;
    }
    let (start, end) = once(3)?;
    gpu.synchronize()?;
    let estimate = f64::from(end.elapsed_ms(&start)?).max(1e-3);
    let samples = (BUDGET_MS / estimate).clamp(11.0, 301.0) as usize;
    let events = (4..4 + samples).map(once).collect::<Result<Vec<_>>>()?;
    gpu.synchronize()?;
    let times: Result<Vec<f64>> = events.iter().map(|(start, end)| Ok(f64::from(end.elapsed_ms(start)?))).collect();
    Ok(median(times?))
}

/// Median host time of a call in microseconds; the GPU's queue is emptied often enough that no call waits for it.
pub fn median_call_us(gpu: &Gpu, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for round in 0..40 {
        gpu.synchronize()?;
        for _ in 0..32 {
            let start = Instant::now();
            call()?;
            let time = start.elapsed().as_secs_f64() * 1e6;
            if round > 1 {
                times.push(time);
            }
        }
    }
    gpu.synchronize()?;
    Ok(median(times))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(super::median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(super::median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
