"""The network: Mask R-CNN (He et al. 2017) on a feature pyramid (Lin et al. 2017), in `keras.ops` alone.

Read in this order: `config` (every size and name), `backbone` (pixels -> feature pyramid), `rpn` (anchors and
proposals), `roi` (boxes, RoIAlign, non-maximum suppression), `heads` (score and box, mask, class), `model` (the
parts joined), `masks` (in their boxes -> pixels), `losses` (what training minimises), `weights` (files),
`detector` (tiles -> Detections). The same code is the paper's network: `presets` (its configurations), `paper`
(its heads and how it reads regions), `mold` (images of any size), `mrcnn_file` (weights of the ``mrcnn`` package).

Boxes are ``[y0, x0, y1, x1]`` in pixels, half-open: the first pixel spans 0 to 1 (the catalogue's coordinates,
where its centre is 0.0, differ by half a pixel). RGB is i, r, g.
"""
