//! A checkpoint of CodeLlama's family with an adaptive token of its own, from the file to the text, on everything that
//! it runs on: it drafts for itself, and what it writes is what ordinary decoding writes.

use engine::{
    AdaptiveTokens, AddMode, CompletionRequest, DeviceChoice, Engine, EngineConfig, Extent, ModelLibrary,
    NativeSat, RandomModelConfig, SamplingParams, Speculation, TensorType, write_random_model,
};

#[test]
fn a_native_checkpoint_drafts_and_writes_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("codellama-sat.gguf");
    let config = RandomModelConfig {
        n_layers: 2,
        hidden: 256,
        n_heads: 4,
        n_kv_heads: 4,
        feed_forward: 512,
        vocabulary: 512,
        native_sat: Some(NativeSat::shared(508, 5)),
        ..RandomModelConfig::llama_7b(TensorType::Q4_0)
    };
    write_random_model(&config, &path).expect("writes");
    let library = ModelLibrary::new(folder.path().join("models"));
    let added = library.add(&path, AddMode::Link).expect("it is added");
    assert_eq!(added.adaptive_tokens, AdaptiveTokens::Native);
    for device in ["cpu", "vulkan:0"] {
        let device: DeviceChoice = device.parse().expect("a device");
        let config = EngineConfig { device, max_context: 512, ..EngineConfig::new("SAT", &path, "") };
        let engine = Engine::start(config, |_| ()).expect("a thread");
        let (loaded, _) = engine.wait_until_ready().expect("it loads");
        assert_eq!((loaded.n_adaptive_tokens, loaded.device_note), (5, None));
        let complete = |speculation, temperature| {
            let request = CompletionRequest {
                max_tokens: 24,
                speculation,
                sampling: SamplingParams { temperature, seed: 3, ..SamplingParams::default() },
                extent: Extent::Raw,
                ..CompletionRequest::new("def area(width, height):\n    return ", "")
            };
            engine.complete(request, |_| ()).expect("it completes")
        };
        for temperature in [0.0, 0.8] {
            let ordinary = complete(Speculation::Off, temperature);
            assert!(ordinary.tokens.len() > 1 && !ordinary.tokens.contains(&508));
            for speculation in [Speculation::Sdsat, Speculation::Fused, Speculation::Auto] {
                let speculative = complete(speculation, temperature);
                assert_eq!(speculative.tokens, ordinary.tokens, "{speculation:?} on {}", loaded.device);
                // The others draft what seems likely only, and random weights make nothing that does.
                assert!(speculation != Speculation::Sdsat || speculative.n_drafted > 0);
            }
        }
    }
}
