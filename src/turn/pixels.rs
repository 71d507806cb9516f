//! How large an image is once Codex decodes it, which it does whole and whatever the size of the file:
//! a megabyte of PNG can hold a gigabyte of pixels.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read as _, Seek, SeekFrom};

use imagesize::ImageSize;

/// Most pixels of an image that is passed on; each takes Codex four bytes and more.
pub(crate) const MAX_IMAGE_PIXELS: u64 = 50_000_000;

/// What is wrong with the size of this image, as the end of a sentence about it; `None` for nothing.
/// Also where nothing tells a size: then Codex can't decode it either.
pub(crate) fn fault_of(image: &[u8]) -> Option<String> {
    fault(size(Cursor::new(image))?)
}

/// The same for an image in a file, from its start.
pub(super) fn fault_in(mut file: File) -> Option<String> {
    file.rewind().ok()?;
    fault(size(BufReader::new(file))?)
}

/// The largest size that an image says it has: some can say several, and which of them Codex goes by is
/// its own matter.
fn size(mut image: impl BufRead + Seek) -> Option<ImageSize> {
    let mut start = Vec::new();
    image.by_ref().take(12).read_to_end(&mut start).ok()?;
    image.rewind().ok()?;
    let mut largest = ImageSize { width: 0, height: 0 };
    // What is cut off has said what it has said before.
    let _ = match &*start {
        [0xff, 0xd8, ..] => walk_jpeg(&mut image, &mut largest),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => {
            walk_webp(&mut image, &mut largest)
        }
        _ => return imagesize::reader_size(image).ok(),
    };
    (pixels(largest) > 0).then_some(largest)
}

/// Goes from marker to marker. Anything may stand between them, most often the byte that begins one.
fn walk_jpeg(image: &mut (impl BufRead + Seek), largest: &mut ImageSize) -> io::Result<()> {
    loop {
        image.skip_until(0xff)?;
        let mut marker = 0xff;
        while marker == 0xff {
            [marker] = read(image)?;
        }
        match marker {
            // Those that stand alone.
            0 | 0x01 | 0xd0..=0xd8 => {}
            // The end, or the pixels.
            0xd9 | 0xda => return Ok(()),
            marker => {
                let length = i64::from(u16::from_be_bytes(read(image)?));
                let mut rest = length - 2;
                if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
                    let [_precision, height @ .., a, b] = read::<5>(image)?;
                    note(u16::from_be_bytes([a, b]), u16::from_be_bytes(height), largest);
                    rest -= 5;
                }
                image.seek_relative(rest.max(0))?;
            }
        }
    }
}

/// Goes from chunk to chunk: that of the canvas, and those of the frames, which have sizes of their own.
fn walk_webp(image: &mut (impl BufRead + Seek), largest: &mut ImageSize) -> io::Result<()> {
    image.seek(SeekFrom::Start(12))?;
    loop {
        let name: [u8; 4] = read(image)?;
        let length = i64::from(u32::from_le_bytes(read(image)?));
        let mut rest = length + length % 2;
        let three = |[a, b, c]: [u8; 3]| u32::from_le_bytes([a, b, c, 0]);
        match &name {
            b"VP8X" => {
                let [_flags @ .., a, b, c, d, e, f] = read::<10>(image)?;
                note(three([a, b, c]) + 1, three([d, e, f]) + 1, largest);
                rest -= 10;
            }
            b"VP8L" => {
                let [_signature, bits @ ..] = read::<5>(image)?;
                let bits = u32::from_le_bytes(bits);
                note((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1, largest);
                rest -= 5;
            }
            b"VP8 " => {
                let [_frame @ .., a, b, c, d] = read::<10>(image)?;
                let of = |bytes| u16::from_le_bytes(bytes) & 0x3fff;
                note(of([a, b]), of([c, d]), largest);
                rest -= 10;
            }
            // A frame of an animation: its size and more, then chunks as these.
            b"ANMF" => {
                let [_x_and_y @ .., a, b, c, d, e, f] = read::<12>(image)?;
                note(three([a, b, c]) + 1, three([d, e, f]) + 1, largest);
                rest = 4;
            }
            _ => {}
        }
        image.seek_relative(rest.max(0))?;
    }
}

fn read<const BYTES: usize>(image: &mut impl BufRead) -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    image.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn note(width: impl Into<u32>, height: impl Into<u32>, largest: &mut ImageSize) {
    let noted = ImageSize { width: width.into() as usize, height: height.into() as usize };
    if pixels(noted) > pixels(*largest) {
        *largest = noted;
    }
}

fn pixels(ImageSize { width, height }: ImageSize) -> u64 {
    (width as u64).saturating_mul(height as u64)
}

fn fault(size: ImageSize) -> Option<String> {
    let ImageSize { width, height } = size;
    (pixels(size) > MAX_IMAGE_PIXELS).then(|| {
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

    /// The largest counts, wherever it stands: Codex takes each of these.
    #[test]
    fn a_size_that_is_hidden_counts() {
        let of = |marker: u8, size: &[u8]| [&[0xff, marker, 0, 11, 8], size, &[1; 4]].concat();
        let small = of(0xc0, &[0, 1, 0, 1]);
        let large = of(0xc2, &[0x42; 4]);
        let padded = [b"\xff\xd8\xff\xff\xff".as_slice(), &large[1..]].concat();
        let twice = [b"\xff\xd8".as_slice(), &small, &large].concat();
        let after_alone = [b"\xff\xd8\xff\xd8\xff\x01".as_slice(), &large].concat();
        let canvas = b"VP8X\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0".as_slice();
        let lossy = b"VP8 \x0a\0\0\0\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f".as_slice();
        let lossless = b"VP8L\x05\0\0\0\x2f\xff\xff\xff\x0f\0".as_slice();
        let webp = |chunks: &[&[u8]]| [b"RIFF\x30\0\0\0WEBP", chunks.concat().as_slice()].concat();
        let framed = [b"ANMF\x22\0\0\0".as_slice(), &[0; 16], lossy].concat();
        for image in [
            padded,
            twice,
            after_alone,
            webp(&[canvas, lossy]),
            webp(&[canvas, lossless]),
            webp(&[canvas, &framed]),
        ] {
            let fault = fault_of(&image).unwrap_or_else(|| panic!("{image:?}"));
            assert_eq!(in_file(&image), Some(fault));
        }
        assert_eq!(fault_of(&webp(&[canvas])), None);
        assert_eq!(fault_of(&[b"\xff\xd8".as_slice(), &small].concat()), None);
    }
}
