//! What `ptxas -v` says about each kernel.

use serde::Serialize;

/// The resources of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    pub kernel: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory that arrays took.
    pub stack: u32,
    pub spill_stores: u32,
    pub spill_loads: u32,
    /// Bytes of statically allocated shared memory; the dynamic part is set at launch.
    pub static_shared: u32,
}

/// Reads `ptxas -v`'s report. Kernels come in its order.
///
/// ```text
/// ptxas info    : Compiling entry function 'name' for 'sm_80'
/// ptxas info    : Function properties for name
///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 8 registers, used 0 barriers, 16 bytes smem, 364 bytes cmem[0]
/// ```
pub fn parse(report: &str) -> Vec<Resources> {
    let mut kernels: Vec<Resources> = Vec::new();
    for line in report.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            kernels.push(Resources { kernel, ..Resources::default() });
        } else if let Some(kernel) = kernels.last_mut() {
            let before = |unit: &str| number_before(line, unit);
            if line.contains("bytes stack frame") {
                kernel.stack = before(" bytes stack frame").unwrap_or(u32::MAX);
                kernel.spill_stores = before(" bytes spill stores").unwrap_or(u32::MAX);
                kernel.spill_loads = before(" bytes spill loads").unwrap_or(u32::MAX);
            } else if line.contains(" registers") {
                kernel.registers = before(" registers").unwrap_or(u32::MAX);
                kernel.static_shared = before(" bytes smem").unwrap_or(0);
            }
        }
    }
    kernels
}

/// What ptxas says it could not make fast, with the kernel it says it of.
///
/// ```text
/// ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ... in function 'name'
/// ```
pub fn losses(report: &str) -> Vec<(String, String)> {
    let loss = |line: &str| {
        let (_, loss) = line.split_once("Potential Performance Loss: ")?;
        let kernel = loss.rsplit_once("function '").and_then(|(_, rest)| rest.split('\'').next());
        Some((kernel.unwrap_or_default().to_owned(), loss.trim().to_owned()))
    };
    report.lines().filter_map(loss).collect()
}

fn number_before(line: &str, unit: &str) -> Option<u32> {
    let (head, _) = line.split_once(unit)?;
    head.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let report = "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'a' for 'sm_80'\n\
            ptxas info    : Function properties for a\n    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
            ptxas info    : Used 168 registers, used 1 barriers, 512 bytes smem, 364 bytes cmem[0]\n\
            ptxas info    : Compiling entry function 'b' for 'sm_80'\nptxas info    : Function properties for b\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\nptxas info    : Used 8 registers, 364 bytes cmem[0]\n";
        let a = Resources {
            kernel: "a".into(),
            registers: 168,
            stack: 16,
            spill_stores: 4,
            spill_loads: 8,
            static_shared: 512,
        };
        let b = Resources { kernel: "b".into(), registers: 8, ..Resources::default() };
        assert_eq!(parse(report), [a, b]);
        assert!(losses(report).is_empty());
    }

    #[test]
    fn a_loss_is_read_with_its_kernel() {
        let report = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
            insufficient register resources for the wgmma pipeline in the function 'a'\nptxas info    : 0 bytes gmem\n";
        let found = losses(report);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, "a");
        assert!(found[0].1.starts_with("wgmma.mma_async instructions are serialized"));
    }
}
