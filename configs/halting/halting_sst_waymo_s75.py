# SST_halt with lower bounds: 73.5 to 83.5 % of the tokens have halted on average over the eight attention layers.
_base_ = ['./halting_sst_waymo_s89.py']
halting = _base_.model.backbone.halting
halting[0].bounds = (0.6, 0.7)
halting[1].bounds = (0.78, 0.88)
model = dict(backbone=dict(halting=halting))
