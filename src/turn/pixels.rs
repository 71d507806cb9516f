//! How large an image is once Codex decodes it, which it does whole and whatever the size of the file:
//! a megabyte of PNG can hold a gigabyte of pixels.

use std::fs::File;
use std::io::{BufReader, Seek as _};

use imagesize::ImageSize;

/// Most pixels of an image that is passed on; each takes Codex four bytes and more.
pub(crate) const MAX_IMAGE_PIXELS: u64 = 50_000_000;

/// What is wrong with the size of this image, as the end of a sentence about it; `None` for nothing.
/// Also where the size can't be told: then Codex can't decode it either.
pub(crate) fn fault_of(image: &[u8]) -> Option<String> {
    fault(imagesize::blob_size(image).ok()?)
}

/// The same for an image in a file, from its start.
pub(super) fn fault_in(mut file: File) -> Option<String> {
    file.rewind().ok()?;
    fault(imagesize::reader_size(BufReader::new(file)).ok()?)
}

fn fault(ImageSize { width, height }: ImageSize) -> Option<String> {
    let pixels = (width as u64).saturating_mul(height as u64);
    (pixels > MAX_IMAGE_PIXELS).then(|| {
        format!(
            "is {width} × {height} pixels large; give an image of at most {} million pixels",
            MAX_IMAGE_PIXELS / 1_000_000
        )
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use super::*;

    /// The start of a PNG of this size.
    pub(crate) fn png(width: u32, height: u32) -> Vec<u8> {
        let start = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR";
        let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
        [start.as_slice(), &size, b"\x08\x06\0\0\0\0\0\0\0"].concat()
    }

    /// The others of 0x4242 pixels each way, behind what may come before the size.
    fn others() -> [Vec<u8>; 3] {
        let mut comment = b"\xff\xd8\xff\xe1\xff\xff".to_vec();
        comment.resize(4 + 0xffff, b' ');
        let jpeg =
            [&comment, b"\xff\xc0\0\x11\x08\x42\x42\x42\x42\x03".as_slice(), &[0; 9]].concat();
        let gif = b"GIF89a\x42\x42\x42\x42\0\0\0".to_vec();
        let webp = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x41\x42\0\x41\x42\0".to_vec();
        [jpeg, gif, webp]
    }

    fn in_file(image: &[u8]) -> Option<String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(image).unwrap();
        fault_in(file)
    }

    #[test]
    fn a_small_file_of_many_pixels_is_told_with_its_size() {
        let images = others().into_iter().chain([png(0x4242, 0x4242)]);
        for image in images {
            let fault = fault_of(&image).unwrap_or_else(|| panic!("{:?}", &image[..12]));
            assert!(fault.contains("16962 × 16962") && fault.contains("50 million"), "{fault}");
            assert_eq!(in_file(&image), Some(fault));
        }
        assert!(fault_of(&png(u32::MAX >> 1, u32::MAX >> 1)).is_some());
    }

    #[test]
    fn what_a_camera_makes_passes_and_so_does_what_is_no_image() {
        for image in [png(8064, 6048), png(1, 50_000_000), png(1, 1)[..10].to_vec(), Vec::new()] {
            assert_eq!((fault_of(&image), in_file(&image)), (None, None));
        }
        assert!(fault_of(&png(1, 50_000_001)).is_some());
    }
}
