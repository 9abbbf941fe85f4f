#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pronto_fuzz::run("workload_file", data));
