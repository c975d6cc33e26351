//! Times of launches on the default stream.

use anyhow::{Result, bail};
use int_flash_attention::driver::{Driver, StreamHandle};
use int_flash_attention::{Gpu, StreamRef};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// A figure's samples in short. The quartiles are what two runs are compared by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Spread {
    pub median: f64,
    pub lower_quartile: f64,
    pub upper_quartile: f64,
    pub least: f64,
    pub most: f64,
    pub samples: usize,
}

/// Milliseconds that the samples of one figure take together, as far as their number allows.
const BUDGET_MS: f64 = 100.0;

/// Times of launches in milliseconds, by events around each. `launch` gets the number of the launch.
pub fn launch_ms(gpu: &Gpu, mut launch: impl FnMut(usize) -> Result<()>) -> Result<Spread> {
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
    Ok(spread(times?))
}

/// A copy of so many bytes inside the GPU's memory, by the driver.
pub fn copy_ms(gpu: &Gpu, bytes: usize) -> Result<Spread> {
    let (from, to) = (gpu.upload(&vec![0x5a_u8; bytes])?, gpu.alloc::<u8>(bytes)?);
    let driver = Driver::load()?;
    let times = launch_ms(gpu, |_| {
        // SAFETY: both buffers have as many bytes and outlive the copy, which `launch_ms` waits for.
        Ok(unsafe { driver.copy_on_device_async(to.ptr(), from.ptr(), bytes, StreamHandle::NULL) }?)
    })?;
    if to.to_vec()?.iter().any(|&byte| byte != 0x5a) {
        bail!("the copy did not copy");
    }
    Ok(times)
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
    Ok(spread(times).median)
}

/// Median, quartiles and ends of at least one value; between two of them in a straight line.
pub fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let place = part * (values.len() - 1) as f64;
        let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
        below + (above - below) * place.fract()
    };
    Spread {
        median: at(0.5),
        lower_quartile: at(0.25),
        upper_quartile: at(0.75),
        least: at(0.0),
        most: at(1.0),
        samples: values.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_quartiles_are_half_way_out() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0]).median, 2.0);
        let four = spread(vec![4.0, 1.0, 2.0, 3.0]);
        assert_eq!((four.median, four.lower_quartile, four.upper_quartile), (2.5, 1.75, 3.25));
        assert_eq!((four.least, four.most, four.samples), (1.0, 4.0, 4));
        assert_eq!(spread(vec![7.0]).upper_quartile, 7.0);
    }
}
