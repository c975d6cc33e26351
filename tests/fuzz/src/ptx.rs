//! The PTX machine's parser and decoder.

use ptx_machine::Module;

/// A module loads or is refused with a line; nothing panics, and no memory is taken that the text does not pay for.
pub fn ptx(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match Module::load(&text) {
        Ok(module) => {
            let _ = module.kernels();
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
