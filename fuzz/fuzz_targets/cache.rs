#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| int_flash_attention_fuzz::cache(bytes));
