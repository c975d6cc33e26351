//! Throw-away: hashes of results.
use int_flash_attention::{AttentionProblem, DType, Scheme};
use int_flash_attention_kernels::config::Family;
use int_flash_attention_tests::case::{Case, Placement};
use int_flash_attention_tests::properties::Kernels;
use int_flash_attention_tests::sim::Simulator;

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

fn main() {
    let sims = [(Family::Sm80, Simulator::of(Family::Sm80, 3)), (Family::Sm90a, Simulator::of(Family::Sm90a, 3))];
    for (family, sim) in &sims {
        for d in [32, 64, 96, 128, 256] {
            if *family == Family::Sm90a && d != 64 && d != 128 {
                continue;
            }
            for scheme in [Scheme::Default, Scheme::Paper] {
                if d == 256 && scheme == Scheme::Paper {
                    continue;
                }
                for causal in [false, true] {
                    for (i, (nq, nkv)) in
                        [(1, 1), (67, 201), (129, 257), (255, 1), (150, 3), (70, 400)].into_iter().enumerate()
                    {
                        let problem =
                            AttentionProblem::new(1, 2, 1, nq, nkv, d).with_causal(causal).with_scheme(scheme);
                        let (dtype, out) =
                            [(DType::F16, DType::F32), (DType::BF16, DType::F16), (DType::F32, DType::BF16)][i % 3];
                        let case = Case {
                            dtype,
                            out_dtype: out,
                            placement: [if i % 2 == 0 {
                                Placement::Bhnd
                            } else {
                                Placement::Padded { token: 8, head: 16, batch: 0 }
                            }; 4],
                            ..Case::plain(problem, i as u64)
                        };
                        let [q, k, v] = case.tensors().unwrap();
                        let operands = int_flash_attention::reference::quantize(&problem, &q, &k, &v).unwrap();
                        let (o, lse) =
                            sim.attention(&(&problem).into(), &operands, &case.output().unwrap(), out, true).unwrap();
                        let o: Vec<u8> = o.dense_f64().iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
                        let l: Vec<u8> = lse.unwrap().iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
                        println!("{family} {d} {scheme} {causal} {nq} {nkv} {:x} {:x}", hash(&o), hash(&l));
                        if *family == Family::Sm80 && scheme == Scheme::Default && i < 5 {
                            let case = Case { dtype: DType::F16, ..case };
                            let [q, k, v] = case.tensors().unwrap();
                            let (o, lse) = sim.attention_f16(&problem, [&q, &k, &v], &case.output().unwrap()).unwrap();
                            let o: Vec<u8> = o.dense_f64().iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
                            let l: Vec<u8> = lse.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
                            println!("f16 {d} {causal} {nq} {nkv} {:x} {:x}", hash(&o), hash(&l));
                        }
                    }
                }
            }
        }
    }
}
