# SST_halt with lower bounds: 80.5 to 89.75 % of the tokens have halted on average over the eight attention layers.
_base_ = ['./halting_sst_waymo_s89.py']
halting = _base_.model.backbone.halting
halting[0].bounds = (0.7, 0.8)
halting[1].bounds = (0.84, 0.93)
model = dict(backbone=dict(halting=halting))
