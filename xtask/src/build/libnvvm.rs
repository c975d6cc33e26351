//! Code generator `libnvvm`: rustc's LLVM IR through libNVVM, the compiler behind nvcc. A second opinion on every kernel that needs
//! nothing but the toolchain and a wheel from PyPI.
//!
//! libNVVM reads the IR of a recent LLVM for compute_100 and newer alone. Nothing in the kernels depends on that number, so the
//! header is set back to the module's target afterwards, and ptxas for that target has the last word.

use super::llvm::Llvm;
use super::{CodeGenerator, Module, ptx_text};
use crate::tools;
use anyhow::{Context, Result, bail};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, OnceLock, PoisonError};

/// What libNVVM compiles for.
const ARCH: &CStr = c"-arch=compute_100";
/// No fused multiply-add but where the source has one, as with rustc's own backend.
const OPTIONS: [&CStr; 3] = [ARCH, c"-opt=3", c"-fma=0"];

/// The data layout that libNVVM asks for (NVVM IR specification, "Data layout").
const DATA_LAYOUT: &str = "e-p:64:64:64-p3:32:32:32-i1:8:8-i8:8:8-i16:16:16-i32:32:32-i64:64:64-i128:128:128-f32:32:32-f64:64:64-f128:128:128-\
    v16:16:16-v32:32:32-v64:64:64-v128:128:128-n16:32:64-a:8:8";

/// The version of NVVM IR and of its debug information, as metadata that the module has to have.
const VERSION: &str = "\n!nvvmir.version = !{!900000}\n!900000 = !{i32 2, i32 0, i32 3, i32 2}\n";

/// rustc for the IR, libNVVM for the rest.
pub struct LibNvvm {
    llvm: Llvm,
    library: OnceLock<Library>,
    /// One program at a time.
    busy: Mutex<()>,
}

impl LibNvvm {
    /// With the toolchain of that name.
    pub fn new(toolchain: String) -> Self {
        Self { llvm: Llvm::new(toolchain), library: OnceLock::new(), busy: Mutex::new(()) }
    }
}

impl CodeGenerator for LibNvvm {
    fn preflight(&self) -> Result<()> {
        self.llvm.preflight()?;
        let path = tools::pinned_libnvvm()?;
        // SAFETY: NVIDIA's library, by the hash of its wheel; its initializers do nothing that another thread would notice.
        let library = unsafe { Library::new(&path) }.with_context(|| format!("cannot open {}", path.display()))?;
        self.library.get_or_init(|| library);
        Ok(())
    }

    fn compile(&self, module: &Module) -> Result<String> {
        let ir = nvvm_ir(&self.llvm.emit(module, "llvm-ir", "ll")?)?;
        let library = self.library.get().context("preflight has not run")?;
        let _one = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let ptx = translate(library, &ir).with_context(|| format!("module {} does not compile", module.name))?;
        ptx_text::retarget(&ptx, module)
    }
}

/// rustc's IR as libNVVM takes it.
fn nvvm_ir(ir: &str) -> Result<String> {
    let mut out = String::with_capacity(ir.len() + DATA_LAYOUT.len() + VERSION.len());
    let mut found = false;
    for line in ir.lines() {
        if line.starts_with("target datalayout = ") {
            out += &format!("target datalayout = \"{DATA_LAYOUT}\"");
            found = true;
        } else {
            out += line;
        }
        out.push('\n');
    }
    if !found {
        bail!("rustc's LLVM IR has no data layout");
    }
    Ok(out + VERSION)
}

/// A program of libNVVM, given back when it goes.
struct Program<'a> {
    library: &'a Library,
    handle: *mut c_void,
}

type Create = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
type AddModule = unsafe extern "C" fn(*mut c_void, *const c_char, usize, *const c_char) -> c_int;
type Compile = unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int;

/// LLVM IR to PTX.
fn translate(library: &Library, ir: &str) -> Result<String> {
    let mut program = Program { library, handle: null_mut() };
    let ir = CString::new(ir).context("LLVM IR with a zero byte")?;
    let options = OPTIONS.map(CStr::as_ptr);
    // SAFETY: functions of nvvm.h with their signatures there; the handle is written before it is read, the IR is as long as said,
    // and the options end in a zero byte each.
    unsafe {
        let create = *library.get::<Create>(b"nvvmCreateProgram")?;
        let add = *library.get::<AddModule>(b"nvvmAddModuleToProgram")?;
        let compile = *library.get::<Compile>(b"nvvmCompileProgram")?;
        let code = create(&mut program.handle);
        if code != 0 {
            bail!("nvvmCreateProgram gives {code}");
        }
        let added = add(program.handle, ir.as_ptr(), ir.as_bytes().len(), c"kernels".as_ptr());
        let compiled =
            if added == 0 { compile(program.handle, options.len() as c_int, options.as_ptr()) } else { added };
        if compiled != 0 {
            let log = program.text(b"nvvmGetProgramLogSize", b"nvvmGetProgramLog")?;
            bail!("libNVVM gives {compiled}: {}", log.trim());
        }
    }
    program.text(b"nvvmGetCompiledResultSize", b"nvvmGetCompiledResult")
}

impl Program<'_> {
    /// A text that libNVVM holds, asked for by the functions for its size and for itself.
    fn text(&self, size: &[u8], text: &[u8]) -> Result<String> {
        let mut bytes = 0;
        // SAFETY: functions of nvvm.h with their signatures there; the buffer is as long as libNVVM says.
        let buffer = unsafe {
            let (size, text) = (*self.library.get::<Size>(size)?, *self.library.get::<Text>(text)?);
            if size(self.handle, &mut bytes) != 0 {
                bail!("libNVVM does not say how long its text is");
            }
            let mut buffer = vec![0_u8; bytes.max(1)];
            if text(self.handle, buffer.as_mut_ptr().cast()) != 0 {
                bail!("libNVVM does not give its text");
            }
            buffer
        };
        let end = buffer.iter().position(|&byte| byte == 0).unwrap_or(buffer.len());
        Ok(String::from_utf8_lossy(&buffer[..end]).into_owned())
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: a function of nvvm.h with its signature there; a handle that was never made is null, which it refuses.
        unsafe {
            if let Ok(destroy) = self.library.get::<Create>(b"nvvmDestroyProgram") {
                destroy(&mut self.handle);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_replaced_and_the_version_added() {
        let ir =
            nvvm_ir("source_filename = \"k\"\ntarget datalayout = \"e-p6:32:32\"\ntarget triple = \"t\"\n").unwrap();
        let lines: Vec<_> = ir.lines().collect();
        assert_eq!(lines[0], "source_filename = \"k\"");
        assert!(
            lines[1].starts_with("target datalayout = \"e-p:64:64:64-") && lines[1].ends_with("-a:8:8\""),
            "{}",
            lines[1]
        );
        assert_eq!(lines[2], "target triple = \"t\"");
        assert!(ir.contains("!nvvmir.version"));
        assert!(nvvm_ir("define void @f() {}\n").is_err());
    }
}
