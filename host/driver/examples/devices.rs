//! The driver and its GPUs, or why there are none: `cargo run --example devices`.

use int_flash_attention_driver::{DeviceAttribute, Driver, Result};

fn main() -> Result<()> {
    let driver = match Driver::load() {
        Ok(driver) => driver,
        Err(why) => {
            println!("{why}");
            return Ok(());
        }
    };
    println!("a driver for CUDA {}.{}", driver.version()? / 1000, driver.version()? % 1000 / 10);
    for ordinal in 0..driver.device_count()? as i32 {
        let device = driver.device(ordinal)?;
        let attribute = |attribute| driver.device_attribute(attribute, device);
        let (major, minor) =
            (attribute(DeviceAttribute::ComputeCapabilityMajor)?, attribute(DeviceAttribute::ComputeCapabilityMinor)?);
        println!("{ordinal}: {}, compute capability {major}.{minor}", driver.device_name(device)?);
    }
    Ok(())
}
