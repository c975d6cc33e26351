//! Kernels, ready for launches.

use super::Gpu;
use super::modules::Wanted;
use crate::error::{Error, Result};
use int_flash_attention_driver::{
    Driver, Function, FunctionAttribute, Graph, GraphExec, GraphNode, LaunchShape, StreamHandle,
};
use int_flash_attention_kernels::params::Params;
use std::ffi::c_void;

/// Shared memory that a block has without asking.
const SHARED_BYTES_UNASKED: usize = 48 << 10;

/// The arguments of a kernel whose only parameter is a structure. The driver copies that and does not write to it.
fn pointers<P: Params>(params: &P) -> [*mut c_void; 1] {
    [std::ptr::from_ref(params).cast_mut().cast()]
}

/// A kernel and the blocks and threads of its launches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub(super) entry: &'static str,
    function: Function,
    shape: LaunchShape,
    overlapping: bool,
}

impl Kernel {
    /// The same, whose blocks may start while the launch before in the stream still runs: it waits itself before it reads what that writes.
    pub(super) const fn overlapping(self) -> Self {
        Self { overlapping: true, ..self }
    }
}

impl Kernel {
    /// The same with a grid of so many blocks.
    pub(super) const fn with_ctas(self, ctas: u32) -> Self {
        Self { shape: LaunchShape { grid: [ctas, 1, 1], ..self.shape }, ..self }
    }

    /// Adds the kernel to a graph, behind others of it.
    ///
    /// # Safety
    /// As of [`launch`](Self::launch) but for the addresses; graph and nodes are alive.
    pub(super) unsafe fn add_to<P: Params>(
        &self,
        driver: Driver,
        graph: Graph,
        after: &[GraphNode],
        params: &P,
    ) -> Result<GraphNode> {
        // SAFETY: the caller's promise.
        Ok(unsafe { driver.add_kernel_node(graph, after, self.function, self.shape, &mut pointers(params)) }?)
    }

    /// Sets what the kernel is given in a graph's launches from now on.
    ///
    /// # Safety
    /// As of [`launch`](Self::launch); the node is the kernel's, its graph is alive, and no other thread uses `exec`.
    #[inline]
    pub(super) unsafe fn set<P: Params>(
        &self,
        driver: Driver,
        exec: GraphExec,
        node: GraphNode,
        params: &P,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        Ok(unsafe { driver.set_kernel_node(exec, node, self.function, self.shape, &mut pointers(params)) }?)
    }

    /// Gives the kernel, whose only parameter is a structure, to a stream: one call of the driver.
    ///
    /// # Safety
    /// The kernel's context is current, and the stream is alive and of it. The kernel's parameter is such a structure, and its addresses have
    /// the sizes that docs/kernel-abi.md says.
    #[inline]
    pub(super) unsafe fn launch<P: Params>(&self, driver: Driver, stream: StreamHandle, params: &P) -> Result<()> {
        let (mut pointers, Self { function, shape, overlapping, .. }) = (pointers(params), *self);
        // SAFETY: the caller's promise; the driver copies the structure and does not write to it. A kernel that is said to overlap waits.
        unsafe {
            if overlapping {
                driver.launch_overlapping(function, shape, stream, &mut pointers)?;
            } else {
                driver.launch(function, shape, stream, &mut pointers)?;
            }
        }
        Ok(())
    }
}

impl Gpu {
    /// A kernel ready for launches of this grid, block and shared memory.
    pub(super) fn kernel(
        &self,
        module: &'static str,
        entry: &'static str,
        grid: [u32; 3],
        threads: usize,
        shared_bytes: usize,
    ) -> Result<Kernel> {
        if shared_bytes > self.0.shared_bytes {
            return Err(Error::SharedMemory {
                kernel: entry,
                needed: shared_bytes,
                available: self.0.shared_bytes,
                device: self.name().to_owned(),
            });
        }
        let function = self.function(Wanted { module, entry })?;
        if shared_bytes > SHARED_BYTES_UNASKED {
            let attribute = FunctionAttribute::MaxDynamicSharedSizeBytes;
            // SAFETY: the module stays loaded as long as this object lives.
            // All that there is, whatever this plan needs: another plan of the kernel may need less, and this one is launched after it.
            unsafe { self.bind()?.set_function_attribute(function, attribute, self.0.shared_bytes as i32) }?;
        }
        let shape = LaunchShape { grid, block: [threads as u32, 1, 1], shared_bytes: shared_bytes as u32 };
        Ok(Kernel { entry, function, shape, overlapping: false })
    }
}
