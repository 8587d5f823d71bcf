//! What this machine can do at most: memory, multiply-add, barriers, layer shapes of the model.
//!
//! `rustc -O -C target-cpu=native limits.rs && ./limits THREADS MODE…` with the modes bw, peak,
//! amx, bar, gemv, amxdec, gemm, blk. Needs x86-64 with AVX-512 VNNI, and AMX for the amx modes.
//! Results are unchecked: a roof to compare with, never a kernel to copy.
use std::arch::{asm, x86_64::*};
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::time::Instant;
static GEN: AtomicUsize = AtomicUsize::new(0);
static CNT: AtomicUsize = AtomicUsize::new(0);
fn barrier(n: usize) {
    if n == 1 {
        return;
    }
    let g = GEN.load(Acquire);
    if CNT.fetch_add(1, AcqRel) + 1 == n {
        CNT.store(0, Relaxed);
        GEN.store(g + 1, Release);
    } else {
        let mut i = 0u32;
        while GEN.load(Acquire) == g {
            i += 1;
            if i % 20000 == 0 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}
fn par<F: Fn(usize) + Sync>(n: usize, f: F) {
    std::thread::scope(|s| {
        for t in 1..n {
            let f = &f;
            s.spawn(move || f(t));
        }
        f(0)
    })
}
fn alloc(n: usize) -> &'static mut [u8] {
    let l = std::alloc::Layout::from_size_align(n, 2 << 20).unwrap();
    unsafe {
        let p = std::alloc::alloc(l);
        asm!("syscall", inlateout("rax") 28i64=>_, in("rdi") p, in("rsi") n, in("rdx") 14, out("rcx") _, out("r11") _);
        let s = std::slice::from_raw_parts_mut(p, n);
        let mut x = 88172645463325252u64;
        for c in s.chunks_exact_mut(8) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            c.copy_from_slice(&x.to_le_bytes());
        }
        s
    }
}
fn med(mut v: Vec<f64>) -> f64 {
    v.sort_by(|a, b| a.partial_cmp(b).unwrap());
    v[v.len() / 2]
}
unsafe fn rd(p: *const u8, n: usize) -> __m512i {
    let mut a = [_mm512_setzero_si512(); 8];
    let mut i = 0;
    while i < n {
        for j in 0..8 {
            a[j] = _mm512_xor_si512(a[j], _mm512_load_si512(p.add(i + 64 * j) as _));
        }
        i += 512;
    }
    let mut r = a[0];
    for j in 1..8 {
        r = _mm512_xor_si512(r, a[j]);
    }
    r
}
fn bw(n: usize) {
    for mb in [1usize, 16, 64, 96, 256, 1024] {
        let b = alloc(mb << 20);
        let base = b.as_ptr() as usize;
        let per = (mb << 20) / n;
        let reps = (2048 / mb).clamp(4, 2000);
        let mut v = vec![];
        for _ in 0..5 {
            let t = Instant::now();
            par(n, |t| unsafe {
                for _ in 0..reps {
                    std::hint::black_box(rd((base + t * per) as _, per));
                }
            });
            v.push((mb << 20) as f64 * reps as f64 / t.elapsed().as_secs_f64() / 1e9);
        }
        let mx = v.iter().cloned().fold(0., f64::max);
        println!("read {mb:5} MiB total, {n} thr: median {:.1} max {mx:.1} GB/s", med(v));
        unsafe {
            std::alloc::dealloc(
                b.as_mut_ptr(),
                std::alloc::Layout::from_size_align(mb << 20, 2 << 20).unwrap(),
            )
        };
    }
}
macro_rules! pk { ($name:expr,$n:expr,$ops:expr,$ins:literal) => {{ let mut v=vec![]; for _ in 0..7 { let it=20_000_000u64/4; let t=Instant::now();
  par($n,|_| unsafe{ asm!("2:",
   concat!($ins," zmm0,zmm30,zmm31"),concat!($ins," zmm1,zmm30,zmm31"),concat!($ins," zmm2,zmm30,zmm31"),concat!($ins," zmm3,zmm30,zmm31"),
   concat!($ins," zmm4,zmm30,zmm31"),concat!($ins," zmm5,zmm30,zmm31"),concat!($ins," zmm6,zmm30,zmm31"),concat!($ins," zmm7,zmm30,zmm31"),
   concat!($ins," zmm8,zmm30,zmm31"),concat!($ins," zmm9,zmm30,zmm31"),concat!($ins," zmm10,zmm30,zmm31"),concat!($ins," zmm11,zmm30,zmm31"),
   "dec {i}","jnz 2b", i=inout(reg) it=>_, out("zmm0") _,out("zmm1") _,out("zmm2") _,out("zmm3") _,out("zmm4") _,out("zmm5") _,out("zmm6") _,out("zmm7") _,out("zmm8") _,out("zmm9") _,out("zmm10") _,out("zmm11") _,out("zmm30") _,out("zmm31") _); });
  v.push(it as f64*12.*$ops*$n as f64/t.elapsed().as_secs_f64()/1e9);} let mx=v.iter().cloned().fold(0.,f64::max); println!("{:22} {} thr: median {:.0} max {:.0} Gop/s",$name,$n,med(v),mx); }} }
#[repr(C, align(64))]
struct Cfg {
    palette: u8,
    start: u8,
    r: [u8; 14],
    colsb: [u16; 16],
    rows: [u8; 16],
}
unsafe fn amx_init() {
    let r: i64;
    asm!("syscall", inlateout("rax") 158i64=>r, in("rdi") 0x1023u64, in("rsi") 18u64, out("rcx") _, out("r11") _);
    assert!(r == 0);
}
unsafe fn amx_cfg_rows(m: u8) {
    let mut c = Cfg { palette: 1, start: 0, r: [0; 14], colsb: [0; 16], rows: [0; 16] };
    for i in 0..8 {
        c.colsb[i] = 64;
        c.rows[i] = if i < 6 { m } else { 16 };
    }
    asm!("ldtilecfg [{c}]", c = in(reg) &c);
}
unsafe fn amx_cfg() {
    let mut c = Cfg { palette: 1, start: 0, r: [0; 14], colsb: [0; 16], rows: [0; 16] };
    for i in 0..8 {
        c.colsb[i] = 64;
        c.rows[i] = 16;
    }
    asm!("ldtilecfg [{c}]", c = in(reg) &c);
}
fn amx(n: usize) {
    unsafe { amx_init() };
    macro_rules! go { ($name:expr,$ops:expr,$ins:literal) => {{ let mut v=vec![]; for _ in 0..7 { let it=400_000u64; let t=Instant::now(); par(n,|_| unsafe{ amx_cfg(); asm!("2:",
      concat!($ins," tmm0,tmm4,tmm6"),concat!($ins," tmm1,tmm4,tmm7"),concat!($ins," tmm2,tmm5,tmm6"),concat!($ins," tmm3,tmm5,tmm7"),"dec {i}","jnz 2b","tilerelease", i=inout(reg) it=>_); });
      v.push(it as f64*4.*$ops*n as f64/t.elapsed().as_secs_f64()/1e9);} let mx=v.iter().cloned().fold(0.,f64::max); println!("{:22} {} thr: median {:.0} max {:.0} Gop/s",$name,n,med(v),mx); }} }
    for m in [1u8, 4, 8, 16] {
        let mut v = vec![];
        for _ in 0..7 {
            let it = 400_000u64;
            let t = Instant::now();
            par(n, |_| unsafe {
                amx_cfg_rows(m);
                asm!("2:", "tdpbusd tmm0,tmm4,tmm6", "tdpbusd tmm1,tmm4,tmm7", "tdpbusd tmm2,tmm5,tmm6", "tdpbusd tmm3,tmm5,tmm7", "dec {i}", "jnz 2b", "tilerelease", i = inout(reg) it => _);
            });
            v.push(t.elapsed().as_secs_f64() / (it as f64 * 4.) * 1e9);
        }
        println!(
            "AMX tdpbusd with {m:2} rows of A: best {:.2} ns each",
            v.iter().cloned().fold(9e9, f64::min)
        );
    }
    go!("AMX int8 tdpbusd", 16. * 16. * 64. * 2., "tdpbusd");
    go!("AMX bf16 tdpbf16ps", 16. * 16. * 32. * 2., "tdpbf16ps");
}
fn bar(n: usize) {
    let mut v = vec![];
    for _ in 0..9 {
        let t = Instant::now();
        par(n, |_| {
            for _ in 0..100_000 {
                barrier(n)
            }
        });
        v.push(t.elapsed().as_secs_f64() / 1e5 * 1e9);
    }
    println!(
        "spin barrier {n} thr: {:.0} ns min {:.0}",
        med(v.clone()),
        v.iter().cloned().fold(1e9, f64::min)
    );
    let b = std::sync::Barrier::new(n);
    let mut v = vec![];
    for _ in 0..5 {
        let t = Instant::now();
        par(n, |_| {
            for _ in 0..5000 {
                b.wait();
            }
        });
        v.push(t.elapsed().as_secs_f64() / 5e3 * 1e9);
    }
    println!("std (futex) barrier {n} thr: {:.0} ns", med(v));
}
// Q4_1 repacked 16 rows: per 32-k block 256 B nibbles + 32 B d + 32 B m ; activations i8 blocks of 32 with f32 scale + f32 scaled sum
const Q4B: usize = 320;
const Q8B: usize = 16 * 32 + 32;
unsafe fn gemv_q4<const M: usize>(
    w: *const u8,
    kb: usize,
    tiles: std::ops::Range<usize>,
    x: *const i8,
    xs: *const f32,
    y: *mut f32,
    k: usize,
    n: usize,
) {
    let mask = _mm512_set1_epi8(15);
    for t in tiles {
        let mut p = w.add(t * kb * Q4B);
        let mut acc = [_mm512_setzero_ps(); M];
        for b in 0..kb {
            _mm_prefetch(p.add(Q4B * 8) as _, _MM_HINT_T0);
            _mm_prefetch(p.add(Q4B * 8 + 64) as _, _MM_HINT_T0);
            _mm_prefetch(p.add(Q4B * 8 + 128) as _, _MM_HINT_T0);
            _mm_prefetch(p.add(Q4B * 8 + 192) as _, _MM_HINT_T0);
            _mm_prefetch(p.add(Q4B * 8 + 256) as _, _MM_HINT_T0);
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(p.add(256) as _));
            let mn = _mm512_cvtph_ps(_mm256_loadu_si256(p.add(288) as _));
            let q: [__m512i; 4] = std::array::from_fn(|j| _mm512_loadu_si512(p.add(64 * j) as _));
            for m in 0..M {
                let xp = x.add(m * k + b * 32) as *const i32;
                let mut a0 = _mm512_setzero_si512();
                let mut a1 = a0;
                for j in 0..4 {
                    a0 = _mm512_dpbusd_epi32(
                        a0,
                        _mm512_and_si512(q[j], mask),
                        _mm512_set1_epi32(*xp.add(2 * j)),
                    );
                    a1 = _mm512_dpbusd_epi32(
                        a1,
                        _mm512_and_si512(_mm512_srli_epi16(q[j], 4), mask),
                        _mm512_set1_epi32(*xp.add(2 * j + 1)),
                    );
                }
                let s = xs.add((m * kb + b) * 2);
                acc[m] = _mm512_fmadd_ps(
                    _mm512_mul_ps(d, _mm512_set1_ps(*s)),
                    _mm512_cvtepi32_ps(_mm512_add_epi32(a0, a1)),
                    acc[m],
                );
                acc[m] = _mm512_fmadd_ps(mn, _mm512_set1_ps(*s.add(1)), acc[m]);
            }
            p = p.add(Q4B);
        }
        for m in 0..M {
            _mm512_storeu_ps(y.add(m * n + t * 16), acc[m]);
        }
    }
}
unsafe fn gemv_q8<const M: usize>(
    w: *const u8,
    kb: usize,
    tiles: std::ops::Range<usize>,
    x: *const i8,
    xs: *const f32,
    y: *mut f32,
    k: usize,
    n: usize,
) {
    for t in tiles {
        let mut p = w.add(t * kb * Q8B);
        let mut acc = [_mm512_setzero_ps(); M];
        for b in 0..kb {
            for j in 0..8 {
                _mm_prefetch(p.add(Q8B * 6 + 64 * j) as _, _MM_HINT_T0);
            }
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(p.add(512) as _));
            let q: [__m512i; 8] = std::array::from_fn(|j| _mm512_loadu_si512(p.add(64 * j) as _));
            for m in 0..M {
                let xp = x.add(m * k + b * 32) as *const i32;
                let mut a0 = _mm512_setzero_si512();
                let mut a1 = a0;
                for j in 0..4 {
                    a0 = _mm512_dpbusd_epi32(a0, q[2 * j], _mm512_set1_epi32(*xp.add(2 * j)));
                    a1 = _mm512_dpbusd_epi32(
                        a1,
                        q[2 * j + 1],
                        _mm512_set1_epi32(*xp.add(2 * j + 1)),
                    );
                }
                let s = xs.add((m * kb + b) * 2);
                acc[m] = _mm512_fmadd_ps(
                    d,
                    _mm512_fmadd_ps(
                        _mm512_set1_ps(*s),
                        _mm512_cvtepi32_ps(_mm512_add_epi32(a0, a1)),
                        _mm512_set1_ps(*s.add(1)),
                    ),
                    acc[m],
                );
            }
            p = p.add(Q8B);
        }
        for m in 0..M {
            _mm512_storeu_ps(y.add(m * n + t * 16), acc[m]);
        }
    }
}
fn gemv<const M: usize>(nt: usize, spec: bool) {
    // all linear layers of SmolLM2-135M, M tokens, 4 barriers per layer
    let shapes = [(576usize, 960usize), (576, 576), (576, 3072), (1536, 576)];
    let mut off = vec![];
    let mut tot = 0;
    for _ in 0..30 {
        for (k, n) in shapes {
            off.push(tot);
            tot += n / 16 * (k / 32) * Q4B;
        }
    }
    let lm = tot;
    tot += 49152 / 16 * 18 * Q8B;
    let w = alloc(tot + (1 << 20)).as_ptr() as usize;
    let x = alloc(1 << 20).as_ptr() as usize;
    let xs = alloc(1 << 20).as_ptr() as usize;
    let y = alloc((49152 * 4 * M + (2 << 20)) & !((1 << 20) - 1)).as_mut_ptr() as usize;
    unsafe {
        for i in 0..(1 << 18) {
            *(xs as *mut f32).add(i) = 0.01;
        }
    }
    let reps = 40 / M.min(8) + 5;
    let mut v = vec![];
    for _ in 0..9 {
        let t0 = Instant::now();
        par(nt, |t| unsafe {
            for _ in 0..reps {
                for l in 0..30 {
                    for (i, (k, n)) in shapes.iter().enumerate() {
                        let tl = n / 16;
                        gemv_q4::<M>(
                            (w + off[l * 4 + i]) as _,
                            k / 32,
                            tl * t / nt..tl * (t + 1) / nt,
                            x as _,
                            xs as _,
                            y as _,
                            *k,
                            *n,
                        );
                        barrier(nt);
                    }
                }
                let tl = 49152 / 16;
                gemv_q8::<M>(
                    (w + lm) as _,
                    18,
                    tl * t / nt..tl * (t + 1) / nt,
                    x as _,
                    xs as _,
                    y as _,
                    576,
                    49152,
                );
                barrier(nt);
            }
        });
        v.push(t0.elapsed().as_secs_f64() / reps as f64);
    }
    let b = v.iter().cloned().fold(9., f64::min);
    let m = med(v);
    println!("GEMV weights-only decode, batch {M}, {nt} thr: median {:.3} ms (best {:.3}) = {:.0} tok/s (best {:.0}), {:.1} GB/s of {:.1} MB{}", m * 1e3, b * 1e3, M as f64 / m, M as f64 / b, tot as f64 / m / 1e9, tot as f64 / 1e6, if spec {""} else {""});
}
// AMX bf16 GEMM: A [M x K] bf16 row major, B packed per 32 columns: [k/32][2 tiles][16 pairs][16 cols][2]
unsafe fn gemm_tile(a: *const u8, lda: usize, b: *const u8, c: *mut f32, ldc: usize, kt: usize) {
    asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", "2:",
        "tileloadd tmm4,[{a}+{lda}*1]", "tileloadd tmm6,[{b}+{s}*1]", "tileloadd tmm7,[{b2}+{s}*1]", "tdpbf16ps tmm0,tmm4,tmm6", "tdpbf16ps tmm1,tmm4,tmm7",
        "tileloadd tmm5,[{a2}+{lda}*1]", "tdpbf16ps tmm2,tmm5,tmm6", "tdpbf16ps tmm3,tmm5,tmm7",
        "add {a},64", "add {a2},64", "add {b},2048", "add {b2},2048", "dec {kt}", "jnz 2b",
        "tilestored [{c}+{ldc}*1],tmm0", "tilestored [{c}+{ldc}*1+64],tmm1", "tilestored [{c2}+{ldc}*1],tmm2", "tilestored [{c2}+{ldc}*1+64],tmm3",
        a = inout(reg) a => _, a2 = inout(reg) a.add(16 * lda) => _, b = inout(reg) b => _, b2 = inout(reg) b.add(1024) => _, kt = inout(reg) kt => _, s = in(reg) 64usize, lda = in(reg) lda, ldc = in(reg) ldc, c = in(reg) c, c2 = in(reg) (c as *mut u8).add(16 * ldc));
}
// Q4_1 (repacked 16 rows) -> bf16 VNNI panel of 32 columns
unsafe fn dequant_panel(w: *const u8, kb: usize, out: *mut u8) {
    let mask = _mm512_set1_epi8(15);
    for h in 0..2 {
        for b in 0..kb {
            let p = w.add((h * kb + b) * Q4B);
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(p.add(256) as _));
            let mn = _mm512_cvtph_ps(_mm256_loadu_si256(p.add(288) as _));
            for j in 0..4 {
                let q = _mm512_loadu_si512(p.add(64 * j) as _);
                for hh in 0..2 {
                    let v = if hh == 0 {
                        _mm512_and_si512(q, mask)
                    } else {
                        _mm512_and_si512(_mm512_srli_epi16(q, 4), mask)
                    };
                    let f = |s: __m512i| {
                        _mm512_fmadd_ps(
                            _mm512_cvtepi32_ps(_mm512_and_si512(s, _mm512_set1_epi32(255))),
                            d,
                            mn,
                        )
                    };
                    let (f0, f1, f2, f3) = (
                        f(v),
                        f(_mm512_srli_epi32(v, 8)),
                        f(_mm512_srli_epi32(v, 16)),
                        f(_mm512_srli_epi32(v, 24)),
                    );
                    let pack = |lo: __m512, hi: __m512| {
                        _mm512_or_si512(
                            _mm512_srli_epi32(_mm512_castps_si512(lo), 16),
                            _mm512_and_si512(
                                _mm512_castps_si512(hi),
                                _mm512_set1_epi32(0xffff0000u32 as i32),
                            ),
                        )
                    };
                    let o = out.add(b * 2048 + h * 1024 + (j * 2 + hh) * 128);
                    _mm512_storeu_si512(o as _, pack(f0, f1));
                    _mm512_storeu_si512(o.add(64) as _, pack(f2, f3));
                }
            }
        }
    }
}
fn gemm(nt: usize, mtok: usize) {
    unsafe { amx_init() };
    let shapes = [(576usize, 960usize), (576, 576), (576, 3072), (1536, 576)];
    let mut off = vec![];
    let mut tot = 0;
    for _ in 0..30 {
        for (k, n) in shapes {
            off.push(tot);
            tot += n / 16 * (k / 32) * Q4B;
        }
    }
    let w = alloc(tot + (1 << 20)).as_ptr() as usize;
    let xb = alloc(4 << 20);
    for c in xb.chunks_exact_mut(2) {
        c[1] = 0x3c;
    }
    let x = xb.as_ptr() as usize;
    let y = alloc(mtok * 3072 * 4 + (2 << 20)).as_mut_ptr() as usize;
    let mut v = vec![];
    let reps = 3;
    for _ in 0..7 {
        let t0 = Instant::now();
        par(nt, |t| unsafe {
            amx_cfg();
            let mut panel = vec![0u8; 1536 * 64 + 4096];
            let o = panel.as_ptr().align_offset(64);
            let pp = panel.as_mut_ptr().add(o);
            for _ in 0..reps {
                for l in 0..30 {
                    for (i, (k, n)) in shapes.iter().enumerate() {
                        let np = n / 32;
                        for p in np * t / nt..np * (t + 1) / nt {
                            dequant_panel(
                                (w + off[l * 4 + i] + p * 2 * (k / 32) * Q4B) as _,
                                k / 32,
                                pp,
                            );
                            let mut m = 0;
                            while m < mtok {
                                gemm_tile(
                                    (x + m * k * 2) as _,
                                    k * 2,
                                    pp,
                                    (y as *mut f32).add(m * n + p * 32),
                                    n * 4,
                                    k / 32,
                                );
                                m += 32;
                            }
                        }
                        barrier(nt);
                    }
                }
            }
            asm!("tilerelease");
        });
        v.push(t0.elapsed().as_secs_f64() / reps as f64);
    }
    let b = v.iter().cloned().fold(9., f64::min);
    let m = med(v);
    let fl = 2. * 106.17e6 * mtok as f64;
    println!("AMX-bf16 GEMM all layers incl. Q4_1 dequant, {mtok} tokens, {nt} thr: median {:.2} ms (best {:.2}) = {:.0} tok/s (best {:.0}), {:.2} TFLOP/s", m * 1e3, b * 1e3, mtok as f64 / m, mtok as f64 / b, fl / m / 1e12);
}
// AMX int8, per-channel weights packed [n/16][k/64][16 rows of 4k][16 cols x 4k] ; M <= 16 rows of activations (one tile), per-token scales
unsafe fn amx_cols(a: *const u8, lda: usize, b: *const u8, kt: usize, c: *mut i32) {
    // 2 column tiles at once (32 columns)
    let bs = kt * 1024;
    asm!("tilezero tmm0", "tilezero tmm1", "2:", "tileloadd tmm4,[{a}+{lda}*1]", "tileloadd tmm6,[{b}+{s}*1]", "tileloadd tmm7,[{b2}+{s}*1]", "tdpbssd tmm0,tmm4,tmm6", "tdpbssd tmm1,tmm4,tmm7",
        "prefetcht0 [{b}+8192]", "prefetcht0 [{b}+8256]", "add {a},64", "add {b},1024", "add {b2},1024", "dec {kt}", "jnz 2b", "tilestored [{c}+{s}*1],tmm0", "tilestored [{c2}+{s}*1],tmm1",
        a = inout(reg) a => _, b = inout(reg) b => _, b2 = inout(reg) b.add(bs) => _, kt = inout(reg) kt => _, s = in(reg) 64usize, lda = in(reg) lda, c = in(reg) c, c2 = in(reg) c.add(256));
}
fn amxdec(nt: usize, m: usize) {
    unsafe { amx_init() };
    let shapes = [(576usize, 960usize), (576, 576), (576, 3072), (1536, 576)];
    let mut off = vec![];
    let mut tot = 0;
    for _ in 0..30 {
        for (k, n) in shapes {
            off.push(tot);
            tot += n * k;
        }
    }
    let lm = tot;
    tot += 49152 * 576;
    let w = alloc((tot + (2 << 20)) & !((1 << 20) - 1)).as_ptr() as usize;
    let x = alloc(1 << 20).as_ptr() as usize;
    let y = alloc(49152 * 4 * 16 + (2 << 20)).as_mut_ptr() as usize;
    let reps = 10;
    let mut v = vec![];
    for _ in 0..9 {
        let t0 = Instant::now();
        par(nt, |t| unsafe {
            amx_cfg_rows_lo(m as u8);
            #[repr(align(64))]
            struct C([i32; 512]);
            let mut c = C([0; 512]);
            let sc = _mm512_set1_ps(0.001);
            let mut run = |wp: usize, k: usize, n: usize| {
                let np = n / 32;
                for p in np * t / nt..np * (t + 1) / nt {
                    amx_cols(x as _, k, (wp + p * 32 * k) as _, k / 64, c.0.as_mut_ptr());
                    for r in 0..m {
                        for h in 0..2 {
                            _mm512_storeu_ps(
                                (y as *mut f32).add(r * n + p * 32 + h * 16),
                                _mm512_mul_ps(
                                    sc,
                                    _mm512_cvtepi32_ps(_mm512_load_si512(
                                        c.0.as_ptr().add(h * 256 + r * 16) as _,
                                    )),
                                ),
                            );
                        }
                    }
                }
                barrier(nt);
            };
            for _ in 0..reps {
                for l in 0..30 {
                    for (i, (k, n)) in shapes.iter().enumerate() {
                        run(w + off[l * 4 + i], *k, *n);
                    }
                }
                run(w + lm, 576, 49152);
            }
            asm!("tilerelease");
        });
        v.push(t0.elapsed().as_secs_f64() / reps as f64);
    }
    let b = v.iter().cloned().fold(9., f64::min);
    let md = med(v);
    println!("AMX int8 per-channel decode (weights only), batch {m}, {nt} thr: median {:.2} ms (best {:.2}) = {:.0} tok/s (best {:.0}), {:.1} GB/s of {:.1} MB", md * 1e3, b * 1e3, m as f64 / md, m as f64 / b, tot as f64 / md / 1e9, tot as f64 / 1e6);
}
unsafe fn amx_cfg_rows_lo(m: u8) {
    let mut c = Cfg { palette: 1, start: 0, r: [0; 14], colsb: [0; 16], rows: [0; 16] };
    for i in 0..8 {
        c.colsb[i] = 64;
        c.rows[i] = if i < 6 { m } else { 16 };
    }
    asm!("ldtilecfg [{c}]", c = in(reg) &c);
}

#[repr(align(64))]
struct Scr([i32; 16 * 16 * 6]);
unsafe fn cfg32() {
    let mut c = Cfg { palette: 1, start: 0, r: [0; 14], colsb: [0; 16], rows: [0; 16] };
    for i in 0..4 {
        c.colsb[i] = 64;
        c.rows[i] = 16;
    }
    for i in 4..6 {
        c.colsb[i] = 32;
        c.rows[i] = 16;
    }
    for i in 6..8 {
        c.colsb[i] = 64;
        c.rows[i] = 8;
    }
    asm!("ldtilecfg [{c}]", c = in(reg) &c);
}
// 3 blocks of K=32: C tiles stored at s, s+1024, s+2048
unsafe fn three32(a: *const u8, lda: usize, b: *const u8, s: *mut i32) {
    asm!("tilezero tmm0","tileloadd tmm4,[{a}+{lda}*1]","tileloadd tmm6,[{b}+{st}*1]","tdpbsud tmm0,tmm4,tmm6",
       "tilezero tmm1","tileloadd tmm5,[{a}+{lda}*1+32]","tileloadd tmm7,[{b}+{st}*1+512]","tdpbsud tmm1,tmm5,tmm7",
       "tilezero tmm2","tileloadd tmm4,[{a}+{lda}*1+64]","tileloadd tmm6,[{b}+{st}*1+1024]","tdpbsud tmm2,tmm4,tmm6",
       "tilestored [{s}+{st}*1],tmm0","tilestored [{s}+{st}*1+1024],tmm1","tilestored [{s}+{st}*1+2048],tmm2",
       a=in(reg) a, lda=in(reg) lda, b=in(reg) b, s=in(reg) s, st=in(reg) 64usize);
}
unsafe fn three64(a: *const u8, lda: usize, b: *const u8, s: *mut i32) {
    asm!("tilezero tmm0","tileloadd tmm4,[{a}+{lda}*1]","tileloadd tmm6,[{b}+{st}*1]","tdpbssd tmm0,tmm4,tmm6",
       "tileloadd tmm5,[{a}+{lda}*1+64]","tileloadd tmm7,[{b}+{st}*1+1024]","tdpbssd tmm0,tmm5,tmm7",
       "tileloadd tmm4,[{a}+{lda}*1+128]","tileloadd tmm6,[{b}+{st}*1+2048]","tdpbssd tmm0,tmm4,tmm6",
       "tilestored [{s}+{st}*1],tmm0",
       a=in(reg) a, lda=in(reg) lda, b=in(reg) b, s=in(reg) s, st=in(reg) 64usize);
}
#[inline(always)]
unsafe fn scale32(
    acc: &mut [__m512; 16],
    s: *const i32,
    d: *const f32,
    mn: *const f32,
    xs: *const f32,
    xss: usize,
    nb: usize,
) {
    for j in 0..nb {
        let dv = _mm512_load_ps(d.add(16 * j));
        let mv = _mm512_load_ps(mn.add(16 * j));
        for r in 0..16 {
            let p = xs.add(r * xss + 2 * j);
            let i = _mm512_cvtepi32_ps(_mm512_load_si512(s.add(256 * j + 16 * r) as _));
            acc[r] = _mm512_fmadd_ps(i, _mm512_mul_ps(dv, _mm512_set1_ps(*p)), acc[r]);
            acc[r] = _mm512_fmadd_ps(mv, _mm512_set1_ps(*p.add(1)), acc[r]);
        }
    }
}
#[inline(always)]
unsafe fn scale192(
    acc: &mut [__m512; 16],
    s: *const i32,
    d: *const f32,
    xs: *const f32,
    xss: usize,
) {
    let dv = _mm512_load_ps(d);
    for r in 0..16 {
        let p = xs.add(r * xss);
        let i = _mm512_cvtepi32_ps(_mm512_load_si512(s.add(16 * r) as _));
        acc[r] = _mm512_fmadd_ps(i, _mm512_mul_ps(dv, _mm512_set1_ps(*p)), acc[r]);
    }
}
unsafe fn expand(w: *const u8, kb: usize, out: *mut u8, d: *mut f32, mn: *mut f32) {
    let mask = _mm512_set1_epi8(15);
    for b in 0..kb {
        let p = w.add(b * Q4B);
        _mm512_storeu_ps(d.add(16 * b), _mm512_cvtph_ps(_mm256_loadu_si256(p.add(256) as _)));
        _mm512_storeu_ps(mn.add(16 * b), _mm512_cvtph_ps(_mm256_loadu_si256(p.add(288) as _)));
        for j in 0..4 {
            let q = _mm512_loadu_si512(p.add(64 * j) as _);
            _mm512_storeu_si512(out.add(b * 512 + j * 128) as _, _mm512_and_si512(q, mask));
            _mm512_storeu_si512(
                out.add(b * 512 + j * 128 + 64) as _,
                _mm512_and_si512(_mm512_srli_epi16(q, 4), mask),
            );
        }
    }
}
fn blk(nt: usize, mtok: usize, wide: bool) {
    unsafe { amx_init() };
    let shapes = [(576usize, 960usize), (576, 576), (576, 3072), (1536, 576)];
    let mut off = vec![];
    let mut tot = 0;
    for _ in 0..30 {
        for (k, n) in shapes {
            off.push(tot);
            tot += n / 16 * (k / 32) * Q4B;
        }
    }
    let w = alloc(tot + (1 << 20)).as_ptr() as usize;
    let x = alloc(4 << 20).as_ptr() as usize;
    let xs = alloc(1 << 20).as_mut_ptr() as usize;
    unsafe {
        for i in 0..1 << 18 {
            *(xs as *mut f32).add(i) = 0.01;
        }
    }
    let y = alloc(mtok * 3072 * 4 + (2 << 20)).as_mut_ptr() as usize;
    let mut v = vec![];
    let reps = 2;
    for _ in 0..7 {
        let t0 = Instant::now();
        par(nt, |t| unsafe {
            if wide {
                amx_cfg()
            } else {
                cfg32()
            };
            let pp = alloc(1 << 17).as_mut_ptr();
            let dd = alloc(1 << 14).as_mut_ptr() as *mut f32;
            let mm = alloc(1 << 14).as_mut_ptr() as *mut f32;
            let mut s0 = Scr([0; 1536]);
            let sp = s0.0.as_mut_ptr();
            for _ in 0..reps {
                for l in 0..30 {
                    for (i, (k, n)) in shapes.iter().enumerate() {
                        let (k, n) = (*k, *n);
                        let np = n / 16;
                        for p in np * t / nt..np * (t + 1) / nt {
                            expand(
                                (w + off[l * 4 + i] + p * (k / 32) * Q4B) as _,
                                k / 32,
                                pp,
                                dd,
                                mm,
                            );
                            let kb = k / 32;
                            let mut m = 0;
                            while m < mtok {
                                let mut acc = [_mm512_setzero_ps(); 16];
                                let a = (x + m * k) as *const u8;
                                let xq = (xs as *const f32).add((m * kb * 2) % 8192);
                                if wide {
                                    let g = k / 192;
                                    three64(a, k, pp, sp);
                                    for c in 0..g {
                                        if c + 1 < g {
                                            three64(
                                                a.add(192 * (c + 1)),
                                                k,
                                                pp.add(3072 * (c + 1)),
                                                sp.add(256 * ((c + 1) & 1)),
                                            );
                                        }
                                        scale192(
                                            &mut acc,
                                            sp.add(256 * (c & 1)),
                                            dd.add(16 * c),
                                            xq.add(c),
                                            g,
                                        );
                                    }
                                } else {
                                    let g = kb / 3;
                                    three32(a, k, pp, sp);
                                    for c in 0..g {
                                        if c + 1 < g {
                                            three32(
                                                a.add(96 * (c + 1)),
                                                k,
                                                pp.add(1536 * (c + 1)),
                                                sp.add(768 * ((c + 1) & 1)),
                                            );
                                        }
                                        scale32(
                                            &mut acc,
                                            sp.add(768 * (c & 1)),
                                            dd.add(48 * c),
                                            mm.add(48 * c),
                                            xq.add(6 * c),
                                            2 * kb,
                                            3,
                                        );
                                    }
                                }
                                for r in 0..16 {
                                    _mm512_storeu_ps(
                                        (y as *mut f32).add((m + r) * n + p * 16),
                                        acc[r],
                                    );
                                }
                                m += 16;
                            }
                        }
                        barrier(nt);
                    }
                }
            }
            asm!("tilerelease");
        });
        v.push(t0.elapsed().as_secs_f64() / reps as f64);
    }
    let b = v.iter().cloned().fold(9., f64::min);
    let m = med(v);
    let fl = 2. * 106.17e6 * mtok as f64;
    println!("AMX int8 {} {mtok} tok, {nt} thr: median {:.2} ms (best {:.2}) = {:.0} tok/s (best {:.0}), {:.2} Top/s", if wide {"group192"} else {"block32 exact Q4_1"}, m * 1e3, b * 1e3, mtok as f64 / m, mtok as f64 / b, fl / m / 1e12);
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let n: usize = a[1].parse().unwrap();
    for m in &a[2..] {
        match m.as_str() {
            "bw" => bw(n),
            "peak" => {
                pk!("f32 FMA zmm", n, 32., "vfmadd231ps");
                pk!("int8 VNNI vpdpbusd", n, 128., "vpdpbusd");
                pk!("bf16 vdpbf16ps", n, 64., "vdpbf16ps");
                pk!("fp16 FMA zmm", n, 64., "vfmadd231ph");
            }
            "amx" => amx(n),
            "bar" => bar(n),
            "gemv" => {
                gemv::<1>(n, true);
                gemv::<2>(n, true);
                gemv::<4>(n, true);
                gemv::<8>(n, true);
            }
            "amxdec" => {
                amxdec(n, 1);
                amxdec(n, 4);
                amxdec(n, 8);
                amxdec(n, 16);
            }
            "blk" => {
                for m in [16, 64, 128, 512] {
                    blk(n, m, false);
                    blk(n, m, true);
                }
            }
            "gemm" => {
                gemm(n, 32);
                gemm(n, 128);
                gemm(n, 512);
            }
            _ => panic!(),
        }
    }
}
