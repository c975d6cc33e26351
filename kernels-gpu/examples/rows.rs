//! The attention kernels and what they are for: `cargo run --example rows`.

use int_flash_attention_kernels::config::ATTENTION;

fn main() {
    for row in ATTENTION {
        println!(
            "{:<44} {:?}, {:?}, head dim {}, {} of V",
            row.name, row.family, row.kind, row.head_dim, row.head_dim_v
        );
    }
}
