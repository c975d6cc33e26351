//! Two kernels, the second behind the first, in one launch: a graph of the plan's own, whose parameters are set each time.
//!
//! On the host of an H200 a launch of a kernel takes the driver 4.1 us and two take 8.0; setting both kernels' parameters and launching such a graph
//! takes it 2.6 (docs/benchmarks-engines.md).

use super::Gpu;
use super::kernel::Kernel;
use super::launch::Launch;
use crate::error::Result;
use int_flash_attention_driver::{Graph, GraphExec, GraphNode, StreamHandle};
use int_flash_attention_kernels::params::Params;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Two kernels of a plan.
pub(super) struct Chain {
    gpu: Gpu,
    kernels: [Kernel; 2],
    /// The nodes are its, and so it stays.
    graph: Graph,
    nodes: [GraphNode; 2],
    exec: GraphExec,
    /// The stream that the graph is launched on, which is that of the first launch: on two of them its launches would wait for each other. Held while
    /// the graph is in use, for CUDA does not lock graphs.
    stream: Mutex<Option<StreamHandle>>,
}

impl Chain {
    /// Kernels, with parameters as large as those of launches.
    pub(super) fn new<A: Params, B: Params>(gpu: &Gpu, first: (&Kernel, &A), second: (&Kernel, &B)) -> Result<Self> {
        gpu.0.context.beside_recordings(|driver| {
            let graph = driver.create_graph()?;
            // SAFETY: the graph is this function's, and the parameters are the kernels'.
            let made = unsafe {
                first.0.add_to(driver, graph, &[], first.1).and_then(|node| {
                    let nodes = [node, second.0.add_to(driver, graph, &[node], second.1)?];
                    Ok((nodes, driver.instantiate_graph(graph)?))
                })
            };
            match made {
                Ok((nodes, exec)) => {
                    let kernels = [*first.0, *second.0];
                    Ok(Self { gpu: gpu.clone(), kernels, graph, nodes, exec, stream: Mutex::new(None) })
                }
                Err(error) => {
                    // SAFETY: nothing else has the graph.
                    let _ = unsafe { driver.destroy_graph(graph) };
                    Err(error)
                }
            }
        })
    }

    /// Gives both kernels to the stream; as two launches where it is recorded, or not the chain's.
    ///
    /// # Safety
    /// As of [`Kernel::launch`], for both.
    pub(super) unsafe fn launch<A: Params, B: Params>(&self, launch: &Launch<'_>, first: &A, second: &B) -> Result<()> {
        let (driver, [one, two]) = (launch.driver(), &self.kernels);
        if !launch.is_recorded()? {
            let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
            if *stream.get_or_insert(launch.stream()) == launch.stream() {
                // SAFETY: the caller's promise; the graphs are alive, and no other thread uses them.
                unsafe {
                    one.set(driver, self.exec, self.nodes[0], first)?;
                    two.set(driver, self.exec, self.nodes[1], second)?;
                    return Ok(driver.launch_graph(self.exec, launch.stream())?);
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe {
            launch.kernel_with(one, first)?;
            launch.kernel_with(two, second)
        }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        // An error means that the context is gone, and these with it.
        let _ = self.gpu.0.context.beside_recordings(|driver| {
            // SAFETY: made by this object; what has been launched is finished all the same.
            unsafe {
                let exec = driver.destroy_graph_exec(self.exec);
                driver.destroy_graph(self.graph)?;
                Ok(exec?)
            }
        });
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("kernels", &self.kernels).finish_non_exhaustive()
    }
}
