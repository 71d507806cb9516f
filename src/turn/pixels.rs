//! How much an image is once Codex decodes it, which it does whole and whatever the size of the file:
//! a megabyte of PNG can hold a gigabyte of pixels. And how much the images of one turn are in sum.
//!
//! The look goes by what a decoder may come upon, not by what a well-made file says first: where a
//! file tells several sizes, the largest counts, and where an image of a format that Codex decodes
//! tells none, it is refused. It never decodes. What is of no such format passes here.

use std::io::{self, BufReader, Cursor, ErrorKind, Read, Seek, SeekFrom};

use base64::prelude::{BASE64_STANDARD, Engine as _};

/// Most pixels of an image that is passed on, where each takes four bytes.
pub(crate) const MAX_IMAGE_PIXELS: u64 = 50_000_000;

/// Most images of one turn, and of one answer.
const MAX_IMAGES: u64 = 256;

/// Most bytes of all of them, as they are in their files and addresses. A worker needs eleven times that
/// while it sends them (measured with 0.169.0).
pub(crate) const MAX_IMAGES_BYTES: u64 = 48 << 20;

/// Most bytes of all of them once they are decoded: 32 screenshots of 4K. A worker decodes one after the
/// other, but scales large ones, and what it makes of them takes up to 26 MB each (measured with 0.169.0).
pub(crate) const MAX_DECODED_IMAGES_BYTES: u64 = 1 << 30;

/// Longest start of an image that tells its format.
const SIGNATURE: u64 = 12;

/// Least bytes of a pixel: Codex makes such of images that have less.
const PIXEL_BYTES: u8 = 4;

/// A format that Codex decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    Gif,
    Webp,
}

impl Format {
    /// The format of an image that starts like this.
    pub(super) fn of(start: &[u8]) -> Option<Format> {
        match start {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Format::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Format::Jpeg),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Format::Gif),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Format::Webp),
            _ => None,
        }
    }

    /// Its media type.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Format::Png => "image/png",
            Format::Jpeg => "image/jpeg",
            Format::Gif => "image/gif",
            Format::Webp => "image/webp",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Format::Png => "PNG",
            Format::Jpeg => "JPEG",
            Format::Gif => "GIF",
            Format::Webp => "WebP",
        }
    }
}

/// The images of one turn, or of one answer, in sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ImageSum {
    count: u64,
    /// As they come.
    bytes: u64,
    decoded_bytes: u64,
}

impl ImageSum {
    /// What is wrong with so much, as the end of a sentence about the image that was added last;
    /// `None` for nothing.
    pub(super) fn fault(self) -> Option<String> {
        let (sum, most) = if self.count > MAX_IMAGES {
            (format!("the {}th image", self.count), MAX_IMAGES)
        } else if self.bytes > MAX_IMAGES_BYTES {
            (format!("one too many: together they have {} bytes", self.bytes), MAX_IMAGES_BYTES)
        } else if self.decoded_bytes > MAX_DECODED_IMAGES_BYTES {
            let sum = format!(
                "one too many: together they have {} bytes once they are decoded",
                self.decoded_bytes
            );
            (sum, MAX_DECODED_IMAGES_BYTES)
        } else {
            return None;
        };
        Some(format!(
            "is {sum}, and the limit is {most}; give fewer images or smaller ones, or the rest in another turn"
        ))
    }

    /// The two together.
    pub(crate) fn with(self, other: ImageSum) -> ImageSum {
        self.combined(other, u64::saturating_add)
    }

    /// What is left without `other`, which is in it.
    pub(crate) fn without(self, other: ImageSum) -> ImageSum {
        self.combined(other, u64::saturating_sub)
    }

    fn combined(self, other: ImageSum, combine: fn(u64, u64) -> u64) -> ImageSum {
        ImageSum {
            count: combine(self.count, other.count),
            bytes: combine(self.bytes, other.bytes),
            decoded_bytes: combine(self.decoded_bytes, other.decoded_bytes),
        }
    }

    /// Adds the image of a `data:` address; of any other there is nothing to add.
    ///
    /// # Errors
    /// As [`ImageSum::add`].
    pub(crate) fn add_address(&mut self, address: &str) -> Result<(), String> {
        let Some((kind, payload)) = address.split_once(',') else { return Ok(()) };
        let is_inline = kind.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"));
        match BASE64_STANDARD.decode(payload) {
            // It is in memory, and so can be read.
            Ok(image) if is_inline => self.add(Cursor::new(image)).unwrap_or(Ok(())),
            _ => Ok(()),
        }
    }

    /// Adds an image, also one that is too much.
    ///
    /// # Errors
    /// Why it can't be passed on, as the end of a sentence about it; or that it can't be read.
    pub(super) fn add(&mut self, mut image: impl Read + Seek) -> io::Result<Result<(), String>> {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(image.seek(SeekFrom::End(0))?);
        // Before it is read, which takes its time.
        if let Some(fault) = self.fault() {
            return Ok(Err(fault));
        }
        image.rewind()?;
        let mut start = Vec::new();
        image.by_ref().take(SIGNATURE).read_to_end(&mut start)?;
        image.rewind()?;
        let Some(format) = Format::of(&start) else { return Ok(Ok(())) };
        let size = match format {
            Format::Png => png(image)?,
            Format::Jpeg => largest_found(image, jpeg_frame)?,
            Format::Gif => gif(BufReader::new(image))?,
            Format::Webp => largest_found(image, webp_frame)?,
        };
        let Some(size) = size.filter(|size| size.pixels() > 0) else {
            return Ok(Err(format!(
                "is a {} that does not tell its size; give a whole one",
                format.name()
            )));
        };
        let Size { width, height, pixel_bytes } = size;
        let decoded_bytes = size.pixels().saturating_mul(pixel_bytes.into());
        if decoded_bytes > MAX_IMAGE_PIXELS * u64::from(PIXEL_BYTES) {
            return Ok(Err(format!(
                "is {width} × {height} pixels large, of {pixel_bytes} bytes each; give an image of at \
                 most {} million pixels of {PIXEL_BYTES} bytes",
                MAX_IMAGE_PIXELS / 1_000_000
            )));
        }
        self.decoded_bytes = self.decoded_bytes.saturating_add(decoded_bytes);
        Ok(self.fault().map_or(Ok(()), Err))
    }
}

/// The size that an image tells.
#[derive(Debug, Clone, Copy)]
struct Size {
    width: u32,
    height: u32,
    /// Once it is decoded; at least [`PIXEL_BYTES`].
    pixel_bytes: u8,
}

impl Size {
    fn of_8_bits(width: impl Into<u32>, height: impl Into<u32>) -> Size {
        Size { width: width.into(), height: height.into(), pixel_bytes: PIXEL_BYTES }
    }

    fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    fn larger(self, other: Size) -> Size {
        if other.pixels() > self.pixels() { other } else { self }
    }
}

/// By IHDR, which comes first: a decoder takes no other PNG. Frames of an animation are not larger.
fn png(mut image: impl Read) -> io::Result<Option<Size>> {
    let mut start = Vec::new();
    image.by_ref().take(26).read_to_end(&mut start)?;
    let Some([b'I', b'H', b'D', b'R', a, b, c, d, e, f, g, h, depth, color]) = start.get(12..)
    else {
        return Ok(None);
    };
    let channels: u8 = match color {
        2 => 3,
        4 => 2,
        6 => 4,
        _ => 1,
    };
    let pixel_bytes = if *depth > 8 { channels * 2 } else { channels };
    Ok(Some(Size {
        width: u32::from_be_bytes([*a, *b, *c, *d]),
        height: u32::from_be_bytes([*e, *f, *g, *h]),
        pixel_bytes: pixel_bytes.max(PIXEL_BYTES),
    }))
}

/// A frame's header (SOF of any kind). Looked for everywhere, and not from segment to segment: a
/// decoder skips what is between them, by rules of its own.
fn jpeg_frame(at: &[u8]) -> Option<Size> {
    match at {
        // DHT, JPG and DAC are among the numbers.
        [0xff, 0xc4 | 0xc8 | 0xcc, ..] => None,
        [0xff, 0xc0..=0xcf, 0, length, 8 | 12 | 16, a, b, c, d, components @ 1..=4, ..]
            if *length == 8 + 3 * components =>
        {
            let (height, width) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
            Some(Size::of_8_bits(width, height))
        }
        _ => None,
    }
}

/// A canvas (VP8X) or the picture of a frame, lossy (VP8) or lossless (VP8L). Looked for everywhere:
/// chunks may lie in frames (ANMF), and be said to be longer than they are.
fn webp_frame(at: &[u8]) -> Option<Size> {
    match at {
        [b'V', b'P', b'8', b'X', _, _, _, 0 | 1, _, _, _, _, a, b, c, d, e, f, ..] => {
            let size = |a: u8, b: u8, c: u8| u32::from_le_bytes([a, b, c, 0]) + 1;
            Some(Size::of_8_bits(size(*a, *b, *c), size(*d, *e, *f)))
        }
        [b'V', b'P', b'8', b' ', _, _, _, _, _, _, _, 0x9d, 1, 0x2a, a, b, c, d, ..] => {
            let size = |a: u8, b: u8| u16::from_le_bytes([a, b & 0x3f]);
            Some(Size::of_8_bits(size(*a, *b), size(*c, *d)))
        }
        [b'V', b'P', b'8', b'L', _, _, _, _, 0x2f, a, b, c, d, ..] => {
            let both = u32::from_le_bytes([*a, *b, *c, *d]);
            Some(Size::of_8_bits((both & 0x3fff) + 1, (both >> 14 & 0x3fff) + 1))
        }
        _ => None,
    }
}

/// The largest of what `find` finds, which looks at one place of the image after the other.
fn largest_found(
    mut image: impl Read,
    find: impl Fn(&[u8]) -> Option<Size>,
) -> io::Result<Option<Size>> {
    const PART: u64 = 64 << 10;
    /// Longest header.
    const AHEAD: usize = 32;
    let mut largest: Option<Size> = None;
    let mut part = Vec::new();
    loop {
        let kept = part.len();
        image.by_ref().take(PART).read_to_end(&mut part)?;
        let is_last = part.len() == kept;
        let looked_at = if is_last { part.len() } else { part.len().saturating_sub(AHEAD) };
        for at in 0..looked_at {
            if let Some(found) = part.get(at..).and_then(&find) {
                largest = Some(largest.map_or(found, |size| size.larger(found)));
            }
        }
        if is_last {
            return Ok(largest);
        }
        part.drain(..looked_at);
    }
}

/// The larger of the screen and of the frames, as far as they go.
fn gif(mut image: BufReader<impl Read + Seek>) -> io::Result<Option<Size>> {
    let size = |[a, b, c, d]: [u8; 4]| {
        Size::of_8_bits(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
    };
    // How long a table of colors is.
    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let [.., a, b, c, d, flags, _, _] = read::<13>(&mut image)?;
    let mut largest = size([a, b, c, d]);
    image.seek_relative(table(flags))?;
    loop {
        match read(&mut image)? {
            [0x21] => image.seek_relative(1)?,
            [0x2c] => {
                let [_, _, _, _, a, b, c, d, flags] = read(&mut image)?;
                largest = largest.larger(size([a, b, c, d]));
                // And the byte before the data.
                image.seek_relative(table(flags) + 1)?;
            }
            _ => return Ok(Some(largest)),
        }
        loop {
            let [length] = read(&mut image)?;
            if length == 0 {
                break;
            }
            image.seek_relative(length.into())?;
        }
    }
}

/// The next bytes; zeros behind the end, which end everything.
fn read<const COUNT: usize>(image: &mut impl Read) -> io::Result<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    match image.read_exact(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok([0; COUNT]),
        read => read.map(|()| bytes),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// An image that takes so many bytes once it is decoded.
    pub(crate) fn decoded(decoded_bytes: u64) -> ImageSum {
        ImageSum { count: 1, bytes: 0, decoded_bytes }
    }

    /// The start of a PNG of this size.
    pub(crate) fn png(width: u32, height: u32) -> Vec<u8> {
        png_of(width, height, 8, 6)
    }

    fn png_of(width: u32, height: u32, depth: u8, color: u8) -> Vec<u8> {
        let start = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR";
        let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
        [start.as_slice(), &size, &[depth, color, 0, 0, 0, 0, 0, 0, 0]].concat()
    }

    /// A frame's header of a JPEG, of `marker`.
    fn sof(marker: u8, width: u16, height: u16) -> Vec<u8> {
        let size = [height.to_be_bytes(), width.to_be_bytes()].concat();
        [&[0xff, marker, 0, 0x11, 8], size.as_slice(), &[3; 10]].concat()
    }

    fn webp(chunks: &[&[u8]]) -> Vec<u8> {
        [b"RIFF\xff\0\0\0WEBP".as_slice(), &chunks.concat()].concat()
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

    fn in_memory(image: &[u8]) -> Result<ImageSum, String> {
        let mut sum = ImageSum::default();
        sum.add(Cursor::new(image)).unwrap().map(|()| sum)
    }

    fn in_file(image: &[u8]) -> Result<ImageSum, String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(image).unwrap();
        let mut sum = ImageSum::default();
        sum.add(file).unwrap().map(|()| sum)
    }

    /// That these are taken for larger than they may be.
    fn are_too_large(images: impl IntoIterator<Item = Vec<u8>>) {
        for image in images {
            let fault = in_memory(&image).expect_err(&format!("{:?}", image.get(..40)));
            assert!(fault.contains("pixels large"), "{fault}");
        }
    }

    #[test]
    fn a_small_file_of_many_pixels_is_told_with_its_size() {
        let images = others().into_iter().chain([png(0x4242, 0x4242)]);
        for image in images {
            let fault = in_memory(&image).unwrap_err();
            assert!(fault.contains("16962 × 16962") && fault.contains("50 million"), "{fault}");
            assert_eq!(in_file(&image), Err(fault));
        }
        are_too_large([png(u32::MAX, u32::MAX)]);
    }

    #[test]
    fn what_a_camera_makes_passes_and_so_does_what_is_no_image() {
        for image in [png(8064, 6048), png(1, 50_000_000), b"<svg>".to_vec(), Vec::new()] {
            let sum = in_memory(&image).unwrap();
            assert_eq!((sum.count, sum.bytes), (1, image.len() as u64));
            assert_eq!(in_file(&image), Ok(sum));
        }
        are_too_large([png(1, 50_000_001)]);
    }

    #[test]
    fn pixels_of_more_bytes_are_more() {
        let size = |depth, color| in_memory(&png_of(1_000, 1_000, depth, color)).unwrap();
        for (depth, color, bytes) in [(1, 0, 4), (8, 3, 4), (8, 2, 4), (16, 4, 4), (16, 2, 6)] {
            assert_eq!(size(depth, color).decoded_bytes, bytes * 1_000_000);
        }
        assert!(in_memory(&png_of(5_000, 5_000, 16, 6)).is_ok());
        are_too_large([png_of(7_071, 7_071, 16, 6)]);
    }

    #[test]
    fn a_known_format_that_tells_no_size_is_refused() {
        let cut = |image: &[u8]| image[..20].to_vec();
        let [jpeg, _, webp] = others();
        let text_first = [&png(1, 1)[..8], b"\0\0\0\x04tEXtabcd\0\0\0\0", &png(1, 1)[8..]].concat();
        let [jpeg, webp, png, text_first, empty, gif] = [
            in_memory(&cut(&jpeg)),
            in_memory(&cut(&webp)),
            in_memory(&cut(&png(1, 1))),
            in_memory(&text_first),
            in_memory(&png(0, 1)),
            in_memory(b"GIF89a\0"),
        ];
        for (looked, name) in [
            (jpeg, "JPEG"),
            (webp, "WebP"),
            (png, "PNG"),
            (text_first, "PNG"),
            (empty, "PNG"),
            (gif, "GIF"),
        ] {
            let fault = looked.unwrap_err();
            assert_eq!(fault, format!("is a {name} that does not tell its size; give a whole one"));
        }
    }

    #[test]
    fn a_jpeg_has_the_largest_frame_that_a_decoder_may_come_upon() {
        let frames = (0xc0..=0xcf).filter(|marker| ![0xc4, 0xc8, 0xcc].contains(marker));
        for marker in frames {
            let before: [&[u8]; 5] = [
                b"\xff\xd8",
                b"\xff\xd8\xff\xff\xff",
                b"\xff\xd8\xff\xe0\0\x04ab\0\0\0",
                b"\xff\xd8\xff\x01\xff\xd0\xff\xd8",
                &[b"\xff\xd8".as_slice(), &sof(0xc0, 16, 16)].concat(),
            ];
            are_too_large(before.map(|before| [before, &sof(marker, 16_000, 16_000)].concat()));
        }
        let thumbnail_last =
            [b"\xff\xd8", &sof(0xc0, 2_000, 1_000)[..], &sof(0xc0, 16, 16)].concat();
        assert_eq!(in_memory(&thumbnail_last).unwrap().decoded_bytes, 8_000_000);
        assert!(in_memory(&[b"\xff\xd8", &sof(0xc4, 16_000, 16_000)[..]].concat()).is_err());
    }

    #[test]
    fn a_webp_has_the_largest_of_its_canvas_and_its_frames() {
        let canvas = b"VP8X\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let lossy = b"VP8 \xff\0\0\0\x10\0\0\x9d\x01\x2a\x80\x3e\x80\x3e";
        let lossless = b"VP8L\xff\0\0\0\x2f\x7f\xfe\x9f\x0f";
        let frame = b"ANMF\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        are_too_large([
            webp(&[lossy]),
            webp(&[lossless]),
            webp(&[canvas, lossy]),
            webp(&[canvas, lossless]),
            webp(&[b"JUNK\xff\xff\xff\xff", canvas, frame, lossy]),
            webp(&[canvas, frame, lossless]),
        ]);
        assert_eq!(in_memory(&webp(&[canvas])).unwrap().decoded_bytes, 4);
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
        let framed = [b"ANMF\x22\0\0\0".as_slice(), &[0; 16], lossy].concat();
        for image in [
            padded,
            twice,
            after_alone,
            webp(&[canvas, lossy]),
            webp(&[canvas, lossless]),
            webp(&[canvas, &framed]),
        ] {
            let fault = in_memory(&image).unwrap_err();
            assert_eq!(in_file(&image), Err(fault));
        }
        assert!(in_memory(&webp(&[canvas])).is_ok());
        assert!(in_memory(&[b"\xff\xd8".as_slice(), &small].concat()).is_ok());
    }

    #[test]
    fn a_gif_has_the_largest_of_its_screen_and_its_frames() {
        let large = b"\x2c\0\0\0\0\x80\x3e\x80\x3e\x80123456\x02";
        let start = b"GIF89a\x01\0\x01\0\x80\0\0abcdef";
        let extension = b"\x21\xfe\x03abc\x01d\0";
        let small = b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x01a\0";
        are_too_large([
            [start.as_slice(), large].concat(),
            [start.as_slice(), extension, large].concat(),
            [start.as_slice(), small, extension, small, large].concat(),
        ]);
        let whole = [start.as_slice(), small, extension, b"\x3b", large].concat();
        assert_eq!(in_memory(&whole).unwrap().decoded_bytes, 4);
    }

    #[test]
    fn images_are_bounded_in_number_bytes_and_decoded_bytes() {
        let small = decoded(0);
        let most = (0..MAX_IMAGES).fold(ImageSum::default(), |sum, _| sum.with(small));
        assert_eq!(most.fault(), None);
        let fault = most.with(small).fault().unwrap();
        assert!(fault.starts_with("is the 257th image, and the limit is 256; give"), "{fault}");
        let fault = ImageSum { count: 1, bytes: MAX_IMAGES_BYTES + 1, decoded_bytes: 0 }.fault();
        assert!(fault.unwrap().contains("have 50331649 bytes, and the limit is 50331648"));
        assert_eq!(decoded(MAX_DECODED_IMAGES_BYTES).fault(), None);
        let fault = decoded(MAX_DECODED_IMAGES_BYTES).with(decoded(1)).fault().unwrap();
        assert!(fault.contains("have 1073741825 bytes once they are decoded"), "{fault}");
        assert!(fault.contains("the limit is 1073741824"), "{fault}");
        assert_eq!(most.with(decoded(7)).without(decoded(7)), most);
    }

    #[test]
    fn what_people_send_in_one_turn_passes() {
        let mut sum = ImageSum::default();
        for _ in 0..32 {
            sum.add(Cursor::new(png(3840, 2160))).unwrap().unwrap();
        }
        let mut sum = ImageSum::default();
        for _ in 0..5 {
            sum.add(Cursor::new(png(8160, 6120))).unwrap().unwrap();
        }
    }

    proptest! {
        #[test]
        fn no_bytes_whatever_make_the_look_panic(
            start in 0_usize..5,
            bytes in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let starts: [&[u8]; 5] =
                [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP"];
            let _ = in_memory(&[starts[start], &bytes].concat());
        }

        #[test]
        fn a_large_frame_of_a_jpeg_is_found_wherever_it_is(
            before in prop::collection::vec(any::<u8>(), 0..400),
            // Around the end of the part that is read at once, too.
            filled in prop_oneof![Just(0), 65_000_usize..66_000],
            after in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let filler = vec![0xff; filled];
            let frame = sof(0xc2, 16_000, 16_000);
            let image = [b"\xff\xd8\xff", before.as_slice(), &filler, &frame, &after].concat();
            prop_assert!(in_memory(&image).is_err());
        }
    }
}
