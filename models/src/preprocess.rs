//! What happens to a picture before the model sees it.
//!
//! The conventions are timm's: resize, centre crop, scale to 0..1, subtract
//! the mean, divide by the standard deviation. An ONNX file says nothing
//! about this, and a wrong guess costs more accuracy than quantization does,
//! so the `.tpv` file stores it. The pixels of the model's input are u8; mean
//! and deviation are folded into the patch embedding.

/// How the picture is brought to size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// The shorter side becomes this many pixels, keeping the aspect; then
    /// the centre is cropped.
    ShorterSide(u32),
    /// Both sides are resized to the model's input, whatever the aspect.
    Squash,
}

/// The filter of the resize; both are antialiased, as Pillow's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// Cubic with a = -0.5.
    Bicubic,
    /// Triangle.
    Bilinear,
}

/// All of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preprocess {
    /// Resize and crop.
    pub resize: Resize,
    /// The filter.
    pub interpolation: Interpolation,
    /// Red, green, blue, of pixels scaled to 0..1.
    pub mean: [f32; 3],
    /// Red, green, blue; positive.
    pub std: [f32; 3],
}
