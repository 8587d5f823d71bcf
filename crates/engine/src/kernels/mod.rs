//! The hot loops, each written once over sixteen lanes and instantiated per instruction set.
//!
//! For: products of quantised weights, attention, norms, activations, the worker threads.
//! Must never: reorder a reduction, use libm, or give other bits on another instruction set;
//! nor be called with an instruction set the processor lacks ([`Cpu`] proves it is there).
//! Relies on: IEEE-754 arithmetic. Every operation here is exactly rounded, so one generic body
//! gives the same bits whether a lane is an array element or part of a register. The scalar form
//! is the definition (docs/spec/numerics.md, rules 1 to 4).
//!
//! This is the only module tree with `unsafe`.

#![allow(unsafe_code)]

pub(crate) mod affinity;
pub(crate) mod attention;
pub(crate) mod blocks;
pub(crate) mod lanes;
#[cfg(target_arch = "x86_64")]
pub(crate) mod lanes_avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod lanes_avx512;
pub(crate) mod matmul;
pub(crate) mod memory;
pub(crate) mod pack;
pub(crate) mod quantise;
pub(crate) mod rows;
#[cfg(test)]
mod tests;
pub(crate) mod threads;
pub(crate) mod vocabulary;

/// An instruction set that the kernels are written for. All of them give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust: the definition, slow, everywhere.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F/BW/VL with VNNI.
    Avx512Vnni,
}

impl Isa {
    /// All instruction sets, slowest first.
    pub const ALL: [Isa; 3] = [Isa::Scalar, Isa::Avx2, Isa::Avx512Vnni];

    /// Whether this processor (and its operating system) can run it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The fastest one that this processor has.
    pub fn best() -> Isa {
        let mut best = Isa::Scalar;
        for isa in Isa::ALL {
            if isa.is_available() {
                best = isa;
            }
        }
        best
    }
}

/// Proof that the processor has an instruction set; the kernels take nothing else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    isa: Isa,
}

impl Cpu {
    /// `None` if this processor lacks `isa`.
    pub(crate) fn new(isa: Isa) -> Option<Cpu> {
        isa.is_available().then_some(Cpu { isa })
    }

    /// The instruction set that is proved to be there.
    pub(crate) fn isa(self) -> Isa {
        self.isa
    }
}

/// Instantiates a generic kernel body for each instruction set and picks by [`Cpu`].
///
/// The body must be `#[inline(always)]`, so that it is compiled inside the function that enables
/// the features; its integer and float operations are exact, so the bits can't differ.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        $vis fn $name(cpu: crate::kernels::Cpu, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) {
                $body::<crate::kernels::lanes_avx2::Avx2>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
            fn avx512($($arg: $ty),*) {
                $body::<crate::kernels::lanes_avx512::Avx512>($($arg),*)
            }
            match cpu.isa() {
                // SAFETY: a `Cpu` exists only if detection found these features.
                #[cfg(target_arch = "x86_64")]
                crate::kernels::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: a `Cpu` exists only if detection found these features.
                #[cfg(target_arch = "x86_64")]
                crate::kernels::Isa::Avx512Vnni => unsafe { avx512($($arg),*) },
                _ => $body::<crate::kernels::lanes::Scalar>($($arg),*),
            }
        }
    };
}
pub(crate) use per_isa;
