//! Modules, functions and launches.

use crate::error::DriverError;
use crate::types::{
    Function, FunctionAttribute, LaunchAttribute, LaunchConfig, LaunchShape, Library, Module, StreamHandle, jit,
};
use crate::{Driver, Result};
use std::ffi::{CString, c_void};

/// Bytes kept of what the driver's assembler says.
const LOG_BYTES: usize = 8192;

impl Driver {
    /// Loads PTX into the current context, assembling it for its GPU; returns the assembler's notes as well.
    ///
    /// # Errors
    /// [`DriverError::Load`] with the assembler's log.
    pub fn load_module(self, ptx: &str) -> Result<(Module, String)> {
        let source = CString::new(ptx).map_err(|_| DriverError::Name { name: "the PTX".to_owned() })?;
        // SAFETY: text that ends in a zero byte.
        unsafe { self.load_image(source.as_ptr().cast()) }
    }

    /// Loads machine code (a cubin, as `ptxas` writes it) into the current context.
    ///
    /// # Safety
    /// The bytes are a whole cubin: the driver is not told their length, and reads as far as their headers say.
    ///
    /// # Errors
    /// [`DriverError::Load`], for instance where it is for another GPU, or newer than the driver.
    pub unsafe fn load_machine_code(self, cubin: &[u8]) -> Result<Module> {
        // SAFETY: the caller's promise.
        unsafe { self.load_image(cubin.as_ptr().cast()) }.map(|(module, _)| module)
    }

    /// # Safety
    /// The image is PTX that ends in a zero byte, or a whole cubin.
    unsafe fn load_image(self, image: *const c_void) -> Result<(Module, String)> {
        let (mut info, mut errors) = (vec![0_u8; LOG_BYTES], vec![0_u8; LOG_BYTES]);
        let mut options = [
            jit::INFO_LOG_BUFFER,
            jit::INFO_LOG_BUFFER_SIZE_BYTES,
            jit::ERROR_LOG_BUFFER,
            jit::ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let size = LOG_BYTES as *mut c_void;
        let mut values = [info.as_mut_ptr().cast(), size, errors.as_mut_ptr().cast(), size];
        let mut module = Module::NULL;
        // SAFETY: the caller's promise; four options with their values; the buffers are as long as said.
        let code = unsafe {
            (self.0.module_load_data_ex)(
                &mut module,
                image,
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        if code == 0 {
            return Ok((module, text(&info)));
        }
        let (name, description) = self.describe(code);
        Err(DriverError::Load { call: "cuModuleLoadDataEx", code, name, text: description, log: text(&errors) })
    }

    /// Unloads a module.
    ///
    /// # Safety
    /// The module is from [`load_module`](Self::load_module) or [`load_machine_code`](Self::load_machine_code); neither it nor a function of it is used any more.
    ///
    /// # Errors
    /// What `cuModuleUnload` says.
    pub unsafe fn unload_module(self, module: Module) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuModuleUnload", unsafe { (self.0.module_unload)(module) })
    }

    /// A module's function.
    ///
    /// # Safety
    /// The module is loaded.
    ///
    /// # Errors
    /// What `cuModuleGetFunction` says, for instance that there is none of this name.
    pub unsafe fn function(self, module: Module, name: &str) -> Result<Function> {
        let name = CString::new(name).map_err(|_| DriverError::Name { name: name.to_owned() })?;
        let mut function = Function::NULL;
        // SAFETY: the caller's promise; the name ends in a zero byte.
        let code = unsafe { (self.0.module_get_function)(&mut function, module, name.as_ptr()) };
        self.check("cuModuleGetFunction", code)?;
        Ok(function)
    }

    /// Loads PTX as a library, which is of no context. Unlike [`load_module`](Self::load_module), threads that do this do not wait for each
    /// other while the driver assembles; where it fails there is no log. The driver may assemble only when a
    /// [`library_function`](Self::library_function) is asked for.
    ///
    /// # Errors
    /// What `cuLibraryLoadData` says.
    pub fn load_library(self, ptx: &str) -> Result<Library> {
        let source = CString::new(ptx).map_err(|_| DriverError::Name { name: "the PTX".to_owned() })?;
        let mut library = Library::NULL;
        // SAFETY: text that ends in a zero byte, of which the driver keeps a copy; no options. (A log's buffer would have to outlive the
        // call, since the driver may assemble later.)
        let code = unsafe {
            let (names, values) = (std::ptr::null_mut(), std::ptr::null_mut());
            (self.0.library_load_data)(&mut library, source.as_ptr().cast(), names, values, 0, names, values, 0)
        };
        self.check("cuLibraryLoadData", code)?;
        Ok(library)
    }

    /// Unloads a library.
    ///
    /// # Safety
    /// The library is from [`load_library`](Self::load_library); neither it nor a function of it is used any more.
    ///
    /// # Errors
    /// What `cuLibraryUnload` says.
    pub unsafe fn unload_library(self, library: Library) -> Result<()> {
        // SAFETY: the caller's promise.
        self.check("cuLibraryUnload", unsafe { (self.0.library_unload)(library) })
    }

    /// A library's function, for the current context.
    ///
    /// # Safety
    /// The library is loaded.
    ///
    /// # Errors
    /// What `cuLibraryGetKernel` and `cuKernelGetFunction` say, for instance that there is none of this name.
    pub unsafe fn library_function(self, library: Library, name: &str) -> Result<Function> {
        let name = CString::new(name).map_err(|_| DriverError::Name { name: name.to_owned() })?;
        let (mut kernel, mut function) = (std::ptr::null_mut(), Function::NULL);
        // SAFETY: the caller's promise; the name ends in a zero byte.
        self.check("cuLibraryGetKernel", unsafe { (self.0.library_get_kernel)(&mut kernel, library, name.as_ptr()) })?;
        // SAFETY: the kernel is of a library that is loaded.
        self.check("cuKernelGetFunction", unsafe { (self.0.kernel_get_function)(&mut function, kernel) })?;
        Ok(function)
    }

    /// A property of a function.
    ///
    /// # Safety
    /// The function's module is loaded.
    ///
    /// # Errors
    /// What `cuFuncGetAttribute` says.
    pub unsafe fn function_attribute(self, attribute: FunctionAttribute, function: Function) -> Result<i32> {
        let mut value = 0;
        // SAFETY: the caller's promise.
        let code = unsafe { (self.0.func_get_attribute)(&mut value, attribute as i32, function) };
        self.check("cuFuncGetAttribute", code)?;
        Ok(value)
    }

    /// Sets a property of a function.
    ///
    /// # Safety
    /// The function's module is loaded.
    ///
    /// # Errors
    /// What `cuFuncSetAttribute` says.
    pub unsafe fn set_function_attribute(
        self,
        function: Function,
        attribute: FunctionAttribute,
        value: i32,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe { (self.0.func_set_attribute)(function, attribute as i32, value) };
        self.check("cuFuncSetAttribute", code)
    }

    /// Launches a function in the stream's order.
    ///
    /// # Safety
    /// `arguments` point to values of the function's parameters, in order; what the kernel does with them is the caller's
    /// promise.
    ///
    /// # Errors
    /// What `cuLaunchKernel` says; errors of the kernel itself come with a later call.
    #[inline]
    pub unsafe fn launch(
        self,
        function: Function,
        shape: LaunchShape,
        stream: StreamHandle,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let LaunchShape { grid: [gx, gy, gz], block: [bx, by, bz], shared_bytes } = shape;
        // SAFETY: the caller's promise.
        let code = unsafe {
            (self.0.launch_kernel)(
                function,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                shared_bytes,
                stream,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.check("cuLaunchKernel", code)
    }

    /// [`launch`](Self::launch), whose blocks may start as soon as all those of the launch before in the stream have said so or ended: the kernel
    /// itself waits (`griddepcontrol.wait`) before it reads what that has written.
    ///
    /// # Safety
    /// As there; and the kernel does wait, which asks for compute capability 9.0.
    ///
    /// # Errors
    /// What `cuLaunchKernelEx` says; errors of the kernel itself come with a later call.
    #[inline]
    pub unsafe fn launch_overlapping(
        self,
        function: Function,
        shape: LaunchShape,
        stream: StreamHandle,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let LaunchShape { grid, block, shared_bytes } = shape;
        let attribute = LaunchAttribute::OVERLAPPING;
        let config = LaunchConfig { grid, block, shared_bytes, stream, attributes: &attribute, attribute_count: 1 };
        // SAFETY: the caller's promise; the driver copies the configuration.
        let code =
            unsafe { (self.0.launch_kernel_ex)(&config, function, arguments.as_mut_ptr(), std::ptr::null_mut()) };
        self.check("cuLaunchKernelEx", code)
    }
}

/// A log buffer up to its zero byte.
fn text(log: &[u8]) -> String {
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..end]).trim().to_owned()
}
