//! Dots of sixteen rows with sixteen outputs at once, by the processor's tiles (AMX).
//!
//! For: products of many rows (`matmul/tiles.rs`). Everything with tile instructions is here.
//! Must never: be used before [`is_usable`] said yes; leave a thread's tiles set up.
//! Relies on: `tdpbssd` (i8 × i8, four to an i32) being exact and not saturating.
//!
//! The intrinsics for tiles are not stable in Rust, so this is assembly. What each function does
//! is checked in an emulated processor (scripts/check-amx.sh), since few machines have tiles.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::blocks::BLOCK;
use super::lanes::{LANES, Line};
use super::tiles::{Dots, Portable, ROWS, Tiles};

/// Whether processor and operating system have tiles, this process may use them, which it asks
/// for at the first call, and they compute what they should. Only to be called where AVX-512 is.
pub(super) fn is_usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| has_tiles() && are_tiles_kept() && may_use_tiles() && are_dots_right())
}

/// AMX-TILE and AMX-INT8. What has AVX-512 has this leaf.
fn has_tiles() -> bool {
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8
}

/// Whether the operating system keeps tiles and their setting for each thread.
fn are_tiles_kept() -> bool {
    const SETTING_AND_DATA: u32 = 1 << 17 | 1 << 18;
    let kept: u32;
    // SAFETY: reads a register that every system which runs AVX-512 has enabled for reading.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") kept, out("edx") _, options(nomem, nostack));
    }
    kept & SETTING_AND_DATA == SETTING_AND_DATA
}

/// Linux gives tiles only to processes that ask: their state is 8 KiB for each thread.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_PRCTL: isize = 158;
    const REQUEST_PERMISSION: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let result: isize;
    // SAFETY: this call takes two numbers and touches no memory of the process; the kernel
    // changes rcx and r11 beside the result.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

/// Whether both sets of tiles give the definition's dots of signed bytes: no machine that we had
/// could show the sign, and what multiplies otherwise is not used.
fn are_dots_right() -> bool {
    let x = std::array::from_fn(|row| std::array::from_fn(|k| ((row * 89 + k * 31) % 255) as i8));
    let weights = std::array::from_fn(|j| Line(std::array::from_fn(|i| (j * 57 + i * 101) as u8)));
    let mut dots = [Dots::ZERO; 3];
    // SAFETY: the checks before this one found tiles that this process may use.
    let (tiles, definition) = unsafe { (Amx::set_up(), Portable::set_up()) };
    tiles.dots::<0>(&x, &weights, &mut dots[0]);
    tiles.dots::<1>(&x, &weights, &mut dots[1]);
    definition.dots::<0>(&x, &weights, &mut dots[2]);
    dots[0].0 == dots[2].0 && dots[1].0 == dots[2].0
}

/// What `ldtilecfg` reads: rows of each tile and the bytes of a row.
#[repr(C, align(64))]
struct Setting {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static SETTING: Setting = setting();

/// Two sets of three tiles, so that a block need not wait for the one before it: dots in 0 and 1,
/// activations in 2 and 3, weights in 4 and 5.
const fn setting() -> Setting {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let shapes = [(ROWS, 4 * LANES), (ROWS, BLOCK), (BLOCK / 4, size_of::<Line>())];
    let mut tile = 0;
    while tile < 2 * shapes.len() {
        rows[tile] = shapes[tile / 2].0 as u8;
        row_bytes[tile] = shapes[tile / 2].1 as u16;
        tile += 1;
    }
    Setting { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
}

/// The calling thread's tiles, set up until this is dropped; it can't go to another thread.
pub(super) struct Amx(PhantomData<*const ()>);

impl Tiles for Amx {
    #[inline(always)]
    unsafe fn set_up() -> Self {
        // SAFETY: the caller promises that tiles are there.
        unsafe { set_up(&SETTING) };
        Amx(PhantomData)
    }

    #[inline(always)]
    fn dots<const SET: usize>(
        &self,
        x: &[[i8; BLOCK]; ROWS],
        weights: &[Line; BLOCK / 4],
        to: &mut Dots,
    ) {
        // SAFETY: the tiles are set up as long as `self` lives.
        unsafe { dots::<SET>(x, weights, to) }
    }
}

impl Drop for Amx {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: they were set up on this thread.
        unsafe { give_back() }
    }
}

/// # Safety
/// [`is_usable`].
#[inline(always)]
unsafe fn set_up(setting: &Setting) {
    // SAFETY: by the caller's promise; the setting is 64 bytes of a valid form.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) setting, options(readonly, nostack, preserves_flags));
    }
}

/// # Safety
/// [`is_usable`].
#[inline(always)]
unsafe fn give_back() {
    // SAFETY: by the caller's promise.
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
}

/// [`Tiles::dots`] in the tiles SET, SET + 2 and SET + 4; SET is 0 or 1.
///
/// # Safety
/// [`is_usable`], and the tiles are set up by [`SETTING`].
#[inline(always)]
unsafe fn dots<const SET: usize>(
    x: &[[i8; BLOCK]; ROWS],
    weights: &[Line; BLOCK / 4],
    to: &mut Dots,
) {
    const { assert!(SET < 2, "there are two sets of tiles") };
    // SAFETY: the tiles' rows are the arrays' rows, one behind the other as the distances say.
    unsafe {
        asm!(
            "tilezero tmm{to_tile}",
            "tileloadd tmm{x_tile}, [{x} + {x_row}*1]",
            "tileloadd tmm{weights_tile}, [{weights} + {line}*1]",
            "tdpbssd tmm{to_tile}, tmm{x_tile}, tmm{weights_tile}",
            "tilestored [{to} + {line}*1], tmm{to_tile}",
            to_tile = const SET,
            x_tile = const SET + 2,
            weights_tile = const SET + 4,
            x = in(reg) x,
            x_row = in(reg) BLOCK,
            weights = in(reg) weights,
            line = in(reg) size_of::<Line>(),
            to = in(reg) to,
            out("tmm0") _, out("tmm1") _, out("tmm2") _,
            out("tmm3") _, out("tmm4") _, out("tmm5") _,
            options(nostack, preserves_flags),
        );
    }
}

/// The functions above as scripts/check-amx.sh takes them out of the test program: without calls,
/// and the same wherever they lie.
#[cfg(test)]
mod emulated {
    use std::hint::black_box;

    use super::*;

    type SetUp = unsafe extern "sysv64" fn(&Setting);
    type DotsOf = unsafe extern "sysv64" fn(&[[i8; BLOCK]; ROWS], &[Line; BLOCK / 4], &mut Dots);
    type GiveBack = unsafe extern "sysv64" fn();

    #[unsafe(no_mangle)]
    static TALLY_AMX_SETTING: Setting = setting();

    #[unsafe(no_mangle)]
    unsafe extern "sysv64" fn tally_amx_set_up(setting: &Setting) {
        // SAFETY: the caller's promise.
        unsafe { set_up(setting) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "sysv64" fn tally_amx_dots_0(
        x: &[[i8; BLOCK]; ROWS],
        weights: &[Line; BLOCK / 4],
        to: &mut Dots,
    ) {
        // SAFETY: the caller's promise.
        unsafe { dots::<0>(x, weights, to) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "sysv64" fn tally_amx_dots_1(
        x: &[[i8; BLOCK]; ROWS],
        weights: &[Line; BLOCK / 4],
        to: &mut Dots,
    ) {
        // SAFETY: the caller's promise.
        unsafe { dots::<1>(x, weights, to) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "sysv64" fn tally_amx_give_back() {
        // SAFETY: the caller's promise.
        unsafe { give_back() }
    }

    /// What tiles compute is asked before they are used ([`is_usable`]); this keeps the functions
    /// in the program, for the emulated processor to run.
    #[test]
    fn the_tile_functions_are_in_the_test_program() {
        let both = black_box([tally_amx_dots_0 as DotsOf, tally_amx_dots_1]);
        let set_up = black_box(tally_amx_set_up as SetUp) as usize;
        let give_back = black_box(tally_amx_give_back as GiveBack) as usize;
        assert_ne!(both[0] as usize, both[1] as usize);
        assert_ne!(set_up, give_back);
        assert_eq!(black_box(&TALLY_AMX_SETTING).palette, 1);
    }
}
