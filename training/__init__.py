"""Scripts that train the models mixport ships; `mixport build` never imports this package.

    python -m training.classifier resnet20 --data FOLDER --out WORK
    python -m training.autoencoder --data FOLDER --out WORK
    python -m training.denoiser --data FOLDER --out WORK
    python -m training.assemble --out WORK

FOLDER holds `cifar10_train_webp.zip` and `cifar10_test.npz`. Every script writes checkpoints into WORK and
goes on from them, on a CPU or a GPU.
"""
