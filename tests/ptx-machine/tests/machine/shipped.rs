//! Every PTX file that ships must load.

use ptx_machine::Module;

#[test]
fn every_shipped_file_loads() -> Result<(), Box<dyn std::error::Error>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../host/ptx");
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "ptx") {
            let ptx = std::fs::read_to_string(&path)?;
            let module = Module::load(&ptx).map_err(|error| format!("{}: {error}", path.display()))?;
            assert!(!module.kernels().is_empty(), "{} holds no kernel", path.display());
        }
    }
    Ok(())
}
