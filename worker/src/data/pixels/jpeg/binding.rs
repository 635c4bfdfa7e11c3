//! libjpeg-turbo's C interface, called safely: buffers and sizes are checked here, and a handle never leaves.

use crate::data::pixels::crop::Crop;
use std::{ffi::CStr, ptr::NonNull};
use turbojpeg::raw;

/// What libjpeg said when it gave up, or warned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said(String);

impl Said {
    /// The words that libjpeg has for a file whose end is missing.
    pub fn cut_off() -> Self {
        Self("Premature end of JPEG file".to_owned())
    }

    /// A warning after which all pixels are there.
    fn is_harmless(&self) -> bool {
        self.0.contains("extraneous bytes before marker") || self.0.contains("Unknown Adobe color transform")
    }

    /// Whether libjpeg would have the region begin elsewhere: sampling factors without a common name.
    pub fn is_refused_region(&self) -> bool {
        self.0.contains("Unexplained mismatch")
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a decoded pixel consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colors {
    /// One byte.
    Gray,
    /// Red, green, blue.
    Rgb,
    /// Cyan, magenta, yellow, black as they are stored: 255 is no ink.
    InvertedCmyk,
}

impl Colors {
    /// Bytes a pixel.
    pub fn channels(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::Rgb => 3,
            Self::InvertedCmyk => 4,
        }
    }

    fn format(self) -> raw::TJPF {
        match self {
            Self::Gray => raw::TJPF_TJPF_GRAY,
            Self::Rgb => raw::TJPF_TJPF_RGB,
            Self::InvertedCmyk => raw::TJPF_TJPF_CMYK,
        }
    }
}

/// A decompressor. It owns its handle.
#[derive(Debug)]
pub struct Turbo(NonNull<std::ffi::c_void>);

// SAFETY: a handle keeps no tie to the thread that made it, and `&mut self` keeps calls apart.
unsafe impl Send for Turbo {}

/// A header beside the bytes that it was read of. While this lives neither can change.
#[derive(Debug)]
pub struct Opened<'a> {
    turbo: &'a mut Turbo,
    bytes: &'a [u8],
    size: (u32, u32),
    colors: Colors,
    imcu_width: Option<u32>,
}

impl Turbo {
    /// A decompressor, or why there is none.
    pub fn new() -> Result<Self, Said> {
        // SAFETY: the call has no precondition; it returns null or a handle that is ours.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS as i32) };
        NonNull::new(handle).map(Self).ok_or_else(|| Said("libjpeg-turbo gives no decompressor".to_owned()))
    }

    /// Reads the header.
    pub fn open<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Opened<'a>, Said> {
        // SAFETY: the handle is a live decompressor, and pointer and length are those of a slice.
        let status = unsafe { raw::tj3DecompressHeader(self.0.as_ptr(), bytes.as_ptr(), bytes.len() as _) };
        self.judge(status)?;
        let side = |said| u32::try_from(said).map_err(|_| Said("its header has no size".to_owned()));
        let size = (side(self.get(raw::TJPARAM_TJPARAM_JPEGWIDTH))?, side(self.get(raw::TJPARAM_TJPARAM_JPEGHEIGHT))?);
        let colors = match self.get(raw::TJPARAM_TJPARAM_COLORSPACE) as raw::TJCS {
            raw::TJCS_TJCS_GRAY => Colors::Gray,
            raw::TJCS_TJCS_CMYK | raw::TJCS_TJCS_YCCK => Colors::InvertedCmyk,
            _ => Colors::Rgb,
        };
        let imcu_width = match self.get(raw::TJPARAM_TJPARAM_SUBSAMP) {
            _ if self.get(raw::TJPARAM_TJPARAM_LOSSLESS) != 0 => None,
            raw::TJSAMP_TJSAMP_444 | raw::TJSAMP_TJSAMP_GRAY | raw::TJSAMP_TJSAMP_440 | raw::TJSAMP_TJSAMP_441 => {
                Some(8)
            }
            raw::TJSAMP_TJSAMP_422 | raw::TJSAMP_TJSAMP_420 => Some(16),
            raw::TJSAMP_TJSAMP_411 => Some(32),
            _ => None,
        };
        Ok(Opened { turbo: self, bytes, size, colors, imcu_width })
    }

    fn get(&mut self, parameter: raw::TJPARAM) -> i32 {
        // SAFETY: the handle is live; an unknown parameter gives -1.
        unsafe { raw::tj3Get(self.0.as_ptr(), parameter as i32) }
    }

    /// The error behind a status other than 0, if it costs pixels. Of several warnings libjpeg keeps the first.
    fn judge(&mut self, status: i32) -> Result<(), Said> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the handle is live; the string is its own, ends in 0 and is copied before the next call.
        let (text, code) = unsafe {
            let text = CStr::from_ptr(raw::tj3GetErrorStr(self.0.as_ptr()));
            (text.to_string_lossy().into_owned(), raw::tj3GetErrorCode(self.0.as_ptr()))
        };
        let said = Said(text);
        if code == raw::TJERR_TJERR_WARNING as i32 && said.is_harmless() { Ok(()) } else { Err(said) }
    }
}

impl Opened<'_> {
    /// Columns and rows.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// What a pixel consists of.
    pub fn colors(&self) -> Colors {
        self.colors
    }

    /// The unit at whose multiples a region may begin; absent when only the whole image can be decoded.
    pub fn imcu_width(&self) -> Option<u32> {
        self.imcu_width
    }

    /// Decodes a region whose `left` is a multiple of [`Self::imcu_width`].
    ///
    /// # Panics
    /// When the region is empty or not within the image, or `pixels` is not its size.
    pub fn decode(&mut self, region: Crop, pixels: &mut [u8]) -> Result<(), Said> {
        let Crop { top, left, height, width } = region;
        let within =
            |start: u32, length: u32, end: u32| length > 0 && start.checked_add(length).is_some_and(|e| e <= end);
        assert!(within(left, width, self.size.0) && within(top, height, self.size.1), "{region:?} is outside");
        let pitch = width as usize * self.colors.channels();
        assert_eq!(pixels.len(), pitch * height as usize);
        let whole = (left, top, width, height) == (0, 0, self.size.0, self.size.1);
        // A region of zeros means the whole image, which every JPEG has.
        let numbers = if whole { [0; 4] } else { [left, top, width, height] };
        let [x, y, w, h] = numbers.map(|number| number as i32);
        let handle = self.turbo.0.as_ptr();
        // SAFETY: the handle is a live decompressor that has read this image's header.
        let status = unsafe { raw::tj3SetCroppingRegion(handle, raw::tjregion { x, y, w, h }) };
        self.turbo.judge(status)?;
        // SAFETY: `bytes` is what the header was read of, so the decoder sees the same size again and writes `height`
        // rows of `pitch` bytes, which is what `pixels` holds; it is checked above.
        let status = unsafe {
            raw::tj3Decompress8(
                handle,
                self.bytes.as_ptr(),
                self.bytes.len() as _,
                pixels.as_mut_ptr(),
                pitch as i32,
                self.colors.format(),
            )
        };
        self.turbo.judge(status)
    }
}

impl Drop for Turbo {
    fn drop(&mut self) {
        // SAFETY: the handle is live and used no more.
        unsafe { raw::tj3Destroy(self.0.as_ptr()) }
    }
}
