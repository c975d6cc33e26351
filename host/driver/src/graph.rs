//! Graphs that are made node by node.

use crate::types::{Function, Graph, GraphExec, GraphNode, KernelNode, LaunchShape};
use crate::{Driver, Result};
use std::ffi::c_void;
use std::ptr::null_mut;

impl KernelNode {
    fn new(function: Function, shape: LaunchShape, arguments: &mut [*mut c_void]) -> Self {
        let LaunchShape { grid, block, shared_bytes } = shape;
        Self { function, grid, block, shared_bytes, arguments: arguments.as_mut_ptr(), extra: null_mut() }
    }
}

impl Driver {
    /// A graph of nothing.
    ///
    /// # Errors
    /// What `cuGraphCreate` says.
    pub fn create_graph(self) -> Result<Graph> {
        let mut graph = Graph::NULL;
        // SAFETY: the function stores one handle.
        self.check("cuGraphCreate", unsafe { (self.0.graph_create)(&mut graph, 0) })?;
        Ok(graph)
    }

    /// Adds a launch that begins when those of `after` have ended.
    ///
    /// # Safety
    /// Graph and nodes are alive; `arguments` point to values of the function's parameters, in order.
    ///
    /// # Errors
    /// What `cuGraphAddKernelNode` says.
    pub unsafe fn add_kernel_node(
        self,
        graph: Graph,
        after: &[GraphNode],
        function: Function,
        shape: LaunchShape,
        arguments: &mut [*mut c_void],
    ) -> Result<GraphNode> {
        let (mut node, launch) = (GraphNode::NULL, KernelNode::new(function, shape, arguments));
        // SAFETY: the caller's promise; the driver copies what the parameters point to.
        let code = unsafe { (self.0.graph_add_kernel_node)(&mut node, graph, after.as_ptr(), after.len(), &launch) };
        self.check("cuGraphAddKernelNode", code)?;
        Ok(node)
    }

    /// Sets what a node's kernel is given in launches from now on; launches before keep what they were given.
    ///
    /// # Safety
    /// `exec` was made of the graph that the node is of; both graphs are alive, and no other thread uses `exec`. `arguments` point to values of the
    /// function's parameters, in order; what the kernel does with them is the caller's promise.
    ///
    /// # Errors
    /// What `cuGraphExecKernelNodeSetParams` says.
    #[inline]
    pub unsafe fn set_kernel_node(
        self,
        exec: GraphExec,
        node: GraphNode,
        function: Function,
        shape: LaunchShape,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let launch = KernelNode::new(function, shape, arguments);
        // SAFETY: the caller's promise; the driver copies what the parameters point to.
        let code = unsafe { (self.0.graph_exec_kernel_node_set_params)(exec, node, &launch) };
        self.check("cuGraphExecKernelNodeSetParams", code)
    }
}
