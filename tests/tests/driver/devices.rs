//! Which GPU is chosen, and why one is not. What stays open in a process is tried in one of its own.

use crate::sentence;
use int_flash_attention::driver::DriverError;
use int_flash_attention::{DType, Device, Error, Gpu, HostTensor, Options, attention};
use pretended_driver::{PretendedGpu, begin};
use std::process::Command;

/// Runs a test's body in a process of its own: this test of this program, started again.
fn alone(test: &str, body: fn()) {
    const ALONE: &str = "INT_FLASH_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    let output = command.args(["--exact", &format!("devices::{test}")]).env(ALONE, "1").output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn auto_takes_the_first_gpu_that_works() {
    alone("auto_takes_the_first_gpu_that_works", || {
        let session = begin(&[PretendedGpu::V100, PretendedGpu::A10]);
        assert_eq!(Device::auto(), (Device::Cuda(1), None));
        assert_eq!(session.violations(), Vec::<String>::new());
    });
}

#[test]
fn auto_says_why_no_gpu_works() {
    alone("auto_says_why_no_gpu_works", || {
        let session = begin(&[PretendedGpu::V100; 2]);
        let (device, why) = Device::auto();
        assert_eq!(device, Device::Cpu);
        let why = why.unwrap();
        let Error::NoUsableGpu { reasons } = &why else { panic!("{why:?}") };
        let too_old = |why: &Error| matches!(why, Error::ComputeCapability { major: 7, minor: 0, .. });
        assert!(reasons.len() == 2 && reasons.iter().all(too_old), "{reasons:?}");
        let why = why.to_string();
        assert!(why.contains("cuda:0: Pretended V100 has compute capability 7.0"), "{why}");
        assert!(why.contains("cuda:1: Pretended V100"), "{why}");
        assert_eq!(session.alive(), pretended_driver::Alive::default(), "no context is made for a GPU that is too old");
    });
}

#[test]
fn auto_falls_back_where_no_kernel_can_be_loaded() {
    alone("auto_falls_back_where_no_kernel_can_be_loaded", || {
        let session = begin(&[PretendedGpu::H200]);
        session.assembler_says("no PTX compiler here");
        let (device, why) = Device::auto();
        assert_eq!(device, Device::Cpu);
        assert!(matches!(&why, Some(Error::ModuleLoad { .. })), "{why:?}");
        assert_eq!(session.alive(), pretended_driver::Alive::default());
    });
}

#[test]
fn the_whole_job_loads_its_kernels_once() {
    alone("the_whole_job_loads_its_kernels_once", || {
        let session = begin(&[PretendedGpu::H200]);
        let x =
            HostTensor::from_fn(DType::F32, crate::layouts(&crate::problem()).1, |_, _, n, d| (n * d) as f32).unwrap();
        attention(Device::Cuda(0), &x, &x, &x, &Options::default()).unwrap();
        let (loads, alive) = (session.calls("cuModuleLoadDataEx"), session.alive());
        attention(Device::Cuda(0), &x, &x, &x, &Options::default()).unwrap();
        assert_eq!((session.calls("cuModuleLoadDataEx"), session.alive()), (loads, alive));
        assert_eq!((alive.allocations, alive.graphs, alive.events), (0, 0, 0));
        assert_eq!(session.violations(), Vec::<String>::new());
    });
}

#[test]
fn gpus_that_are_not_there_or_too_old_are_refused() {
    let session = begin(&[PretendedGpu::H200, PretendedGpu::V100]);
    assert_eq!(Gpu::new(2).err(), Some(Error::NoSuchDevice { given: 2, count: 2 }));
    let old = Gpu::new(1).err().unwrap();
    assert!(matches!(&old, Error::ComputeCapability { major: 7, minor: 0, .. }), "{old:?}");
    assert!(old.to_string().contains("8.0 or later"));
    let library = session.other_library(1);
    assert!(matches!(Gpu::current(), Err(Error::ComputeCapability { .. })));
    drop(library);
    crate::nothing_is_left(&session);
}

#[test]
fn a_gpu_says_what_int8_is_worth() {
    let session =
        begin(&[PretendedGpu::H200, PretendedGpu::B300, PretendedGpu { capability: (99, 9), ..PretendedGpu::H200 }]);
    let rate = |gpu| Gpu::new(gpu).unwrap().int8_rate();
    assert_eq!(rate(0), Some(2.0));
    assert!(rate(1).is_some_and(|rate| rate < 0.1));
    assert_eq!(rate(2), None);
    drop(session);
}

#[cfg(unix)]
#[test]
fn a_forked_child_is_told_so() {
    unsafe extern "C" {
        fn fork() -> i32;
        fn waitpid(child: i32, status: *mut i32, options: i32) -> i32;
        fn _exit(code: i32) -> !;
    }
    let session = begin(&[PretendedGpu::H200]);
    drop(Gpu::new(0).unwrap());
    // SAFETY: the child touches nothing that another thread may have locked: no allocation, no pretended driver.
    let child = unsafe { fork() };
    if child == 0 {
        let told = matches!(int_flash_attention::driver::Driver::load(), Err(DriverError::Forked));
        // SAFETY: ends the child at once.
        unsafe { _exit(i32::from(!told)) }
    }
    let mut status = -1;
    // SAFETY: this process's child, and one integer.
    unsafe { waitpid(child, &mut status, 0) };
    assert_eq!(status, 0, "the child did not see that it was forked");
    assert!(DriverError::Forked.to_string().contains("forked"));
    crate::nothing_is_left(&session);
}

#[test]
fn a_load_error_has_the_compilers_log_once() {
    let session = begin(&[PretendedGpu::H200]);
    session.assembler_says("line 7: no such instruction");
    {
        let gpu = Gpu::new(0).unwrap();
        let error = crate::Job::new(&gpu).err().unwrap();
        assert!(matches!(&error, Error::ModuleLoad { module: "quantize_f16", .. }), "{error:?}");
        // As a program prints it: the error, and the chain of its sources.
        let chain = format!("{:#}", anyhow::Error::from(error));
        assert_eq!(chain.matches("line 7").count(), 1, "{chain}");
    }
    session.assembler_says("");
    session.leave_out("quantize_f16");
    {
        let gpu = Gpu::new(0).unwrap();
        let text = sentence(crate::Job::new(&gpu).map(|_| ()));
        assert!(text.contains("module quantize_f16 has no kernel quantize_f16"), "{text}");
    }
    crate::nothing_is_left(&session);
}
